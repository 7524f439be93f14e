// Answers questions about one of Ollama's TEMPLATEs, read as JSON from standard input: what it refers to, and what it
// renders. Ollama's templates are Go's text/template with four functions and rules of its own (template/template.go,
// thinking/template.go), which only Go itself can play exactly. Types of tools' properties for TypeScript are not played.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
)

type property struct {
	AnyOf       []property `json:"anyOf,omitempty"`
	Type        any        `json:"type,omitempty"`
	Items       any        `json:"items,omitempty"`
	Description string     `json:"description,omitempty"`
	Enum        []any      `json:"enum,omitempty"`
	Properties  properties `json:"properties,omitempty"`
	Required    []string   `json:"required,omitempty"`
}

type properties map[string]property

type tool struct {
	Type     string `json:"type"`
	Items    any    `json:"items,omitempty"`
	Function struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  struct {
			Type       string     `json:"type"`
			Defs       any        `json:"$defs,omitempty"`
			Items      any        `json:"items,omitempty"`
			Required   []string   `json:"required,omitempty"`
			Properties properties `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}

type tools []tool
type arguments map[string]any

type toolCall struct {
	ID       string `json:"id"`
	Function struct {
		Index     int       `json:"index"`
		Name      string    `json:"name"`
		Arguments arguments `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role       string     `json:"role"`
	Content    string     `json:"content"`
	Thinking   string     `json:"thinking"`
	Images     [][]byte   `json:"images"`
	ToolCalls  []toolCall `json:"tool_calls"`
	ToolName   string     `json:"tool_name"`
	ToolCallID string     `json:"tool_call_id"`
}

type question struct {
	Template   string    `json:"template"`
	Render     bool      `json:"render"`
	Messages   []message `json:"messages"`
	Tools      tools     `json:"tools"`
	Think      bool      `json:"think"`
	ThinkLevel string    `json:"think_level"`
	IsThinkSet bool      `json:"is_think_set"`
}

type answer struct {
	Error     string   `json:"error,omitempty"`
	Variables []string `json:"variables"`
	Opening   string   `json:"opening"`
	Closing   string   `json:"closing"`
	Text      string   `json:"text"`
}

// Printed in a template, tools and arguments are JSON.
func (t tools) String() string      { return asJSON(t) }
func (t tool) String() string       { return asJSON(t) }
func (p properties) String() string { return asJSON(p) }
func (a arguments) String() string {
	if a == nil {
		return "{}"
	}
	return asJSON(a)
}

func asJSON(value any) string {
	text, _ := json.Marshal(value)
	return string(text)
}

var functions = template.FuncMap{
	"json":             asJSON,
	"currentDate":      func(...string) string { return time.Now().Format(time.DateOnly) },
	"yesterdayDate":    func(...string) string { return time.Now().AddDate(0, 0, -1).Format(time.DateOnly) },
	"toTypeScriptType": func(any) string { return "any" },
}

func main() {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	said, err := reply(asked)
	if err != nil {
		said.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		os.Exit(2)
	}
}

func reply(asked question) (said answer, err error) {
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(asked.Template)
	if err != nil {
		return said, err
	}
	said.Variables, err = variables(parsed)
	if err != nil {
		return said, err
	}
	if parsed.Tree == nil {
		return said, nil
	}
	said.Opening, said.Closing = thinkingTags(parsed.Root)
	if !asked.Render {
		return said, nil
	}
	if !slices.Contains(said.Variables, "messages") && !slices.Contains(said.Variables, "response") {
		field := &parse.FieldNode{NodeType: parse.NodeField, Ident: []string{"Response"}}
		command := &parse.CommandNode{NodeType: parse.NodeCommand, Args: []parse.Node{field}}
		pipe := &parse.PipeNode{NodeType: parse.NodePipe, Cmds: []*parse.CommandNode{command}}
		parsed.Root.Nodes = append(parsed.Root.Nodes, &parse.ActionNode{NodeType: parse.NodeAction, Pipe: pipe})
	}
	if slices.Contains(said.Variables, "messages") {
		said.Text, err = conversation(parsed, asked)
	} else {
		said.Text, err = turnByTurn(parsed, asked)
	}
	return said, err
}

// variables returns the names of all fields and variables, in lower case.
func variables(parsed *template.Template) ([]string, error) {
	found := map[string]bool{}
	for _, part := range parsed.Templates() {
		for _, node := range part.Root.Nodes {
			if call, ok := node.(*parse.TemplateNode); ok && call.Pipe == nil {
				return nil, fmt.Errorf("undefined template specified")
			}
			visit(node, nil, func(node parse.Node, _ []parse.Node) {
				switch node := node.(type) {
				case *parse.FieldNode:
					for _, name := range node.Ident {
						found[strings.ToLower(name)] = true
					}
				case *parse.VariableNode:
					for _, name := range node.Ident {
						found[strings.ToLower(name)] = true
					}
				}
			})
		}
	}
	names := make([]string, 0, len(found))
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// visit calls see for a node and all below it, with the nodes that it is in.
func visit(node parse.Node, above []parse.Node, see func(parse.Node, []parse.Node)) {
	see(node, above)
	above = append(slices.Clone(above), node)
	for _, child := range children(node) {
		visit(child, above, see)
	}
}

func children(node parse.Node) (below []parse.Node) {
	branch := func(node *parse.BranchNode) {
		below = append(below, node.Pipe, node.List)
		if node.ElseList != nil {
			below = append(below, node.ElseList)
		}
	}
	switch node := node.(type) {
	case *parse.ListNode:
		below = append(below, node.Nodes...)
	case *parse.IfNode:
		branch(&node.BranchNode)
	case *parse.RangeNode:
		branch(&node.BranchNode)
	case *parse.WithNode:
		branch(&node.BranchNode)
	case *parse.TemplateNode:
		if node.Pipe != nil {
			below = append(below, node.Pipe)
		}
	case *parse.ActionNode:
		below = append(below, node.Pipe)
	case *parse.PipeNode:
		for _, command := range node.Cmds {
			below = append(below, command)
		}
	case *parse.CommandNode:
		below = append(below, node.Args...)
	}
	return below
}

// thinkingTags returns the texts around .Thinking in a range over .Messages: the ends of the list that it stands in.
func thinkingTags(root parse.Node) (opening, closing string) {
	visit(root, nil, func(node parse.Node, above []parse.Node) {
		field, ok := node.(*parse.FieldNode)
		if !ok || field.Ident[0] != "Thinking" {
			return
		}
		var list *parse.ListNode
		for _, outer := range slices.Backward(above) {
			if found, ok := outer.(*parse.ListNode); ok && list == nil {
				list = found
			}
			loop, ok := outer.(*parse.RangeNode)
			if !ok {
				continue
			}
			over := false
			visit(loop.Pipe, nil, func(node parse.Node, _ []parse.Node) {
				named, ok := node.(*parse.FieldNode)
				over = over || ok && named.Ident[0] == "Messages"
			})
			if over && list != nil {
				if text, ok := list.Nodes[0].(*parse.TextNode); ok {
					opening = strings.TrimSpace(text.String())
				}
				if text, ok := list.Nodes[len(list.Nodes)-1].(*parse.TextNode); ok {
					closing = strings.TrimSpace(text.String())
				}
			}
			return
		}
	})
	return opening, closing
}

// collated returns all system texts, and the messages with neighbours of one role put together (but for tools' answers).
func collated(messages []message) (string, []*message) {
	var system []string
	var merged []*message
	for _, said := range messages {
		if said.Role == "system" {
			system = append(system, said.Content)
		}
		if last := len(merged) - 1; last >= 0 && merged[last].Role == said.Role && said.Role != "tool" {
			merged[last].Content += "\n\n" + said.Content
		} else {
			merged = append(merged, &said)
		}
	}
	return strings.Join(system, "\n\n"), merged
}

func (asked question) values(more map[string]any) map[string]any {
	more["Think"], more["ThinkLevel"], more["IsThinkSet"] = asked.Think, asked.ThinkLevel, asked.IsThinkSet
	return more
}

func conversation(parsed *template.Template, asked question) (string, error) {
	system, messages := collated(asked.Messages)
	var text strings.Builder
	err := parsed.Execute(&text, asked.values(map[string]any{
		"System": system, "Messages": messages, "Tools": asked.Tools, "Response": "",
	}))
	return text.String(), err
}

// turnByTurn renders a template that knows .System, .Prompt and .Response once a turn; the last time it ends with the
// response, which is empty but where the assistant's turn is to be gone on with.
func turnByTurn(parsed *template.Template, asked question) (string, error) {
	var text strings.Builder
	system, prompt, response := "", "", ""
	render := func(part *template.Template) error {
		values := map[string]any{"System": system, "Prompt": prompt, "Response": response}
		system, prompt, response = "", "", ""
		return part.Execute(&text, asked.values(values))
	}
	_, messages := collated(asked.Messages)
	for _, said := range messages {
		over := said.Role == "system" && (prompt != "" || response != "") || said.Role == "user" && response != ""
		if over {
			if err := render(parsed); err != nil {
				return "", err
			}
		}
		switch said.Role {
		case "system":
			system = said.Content
		case "user":
			prompt = said.Content
		case "assistant":
			response = said.Content
		}
	}
	cut := false
	root, _ := upToResponse(parsed.Root.Copy(), &cut).(*parse.ListNode)
	last, err := template.New("").Funcs(functions).AddParseTree("", &parse.Tree{Root: root})
	if err != nil {
		return "", err
	}
	err = render(last)
	return text.String(), err
}

// upToResponse drops all that follows .Response; nil is nothing left.
func upToResponse(node parse.Node, cut *bool) parse.Node {
	if *cut {
		return nil
	}
	if field, ok := node.(*parse.FieldNode); ok && slices.Contains(field.Ident, "Response") {
		*cut = true
		return node
	}
	branch := func(node *parse.BranchNode) {
		node.List = upToResponse(node.List, cut).(*parse.ListNode)
		if node.ElseList != nil {
			// What is cut in one branch is cut in the other as well, as the text goes on.
			rest, ok := upToResponse(node.ElseList, cut).(*parse.ListNode)
			if !ok {
				rest = nil
			}
			node.ElseList = rest
		}
	}
	switch node := node.(type) {
	case *parse.ListNode:
		var kept []parse.Node
		for _, child := range node.Nodes {
			if child = upToResponse(child, cut); child != nil {
				kept = append(kept, child)
			}
		}
		node.Nodes = kept
	case *parse.IfNode:
		branch(&node.BranchNode)
	case *parse.WithNode:
		branch(&node.BranchNode)
	case *parse.RangeNode:
		branch(&node.BranchNode)
	case *parse.ActionNode:
		pipe, ok := upToResponse(node.Pipe, cut).(*parse.PipeNode)
		if !ok {
			return nil
		}
		node.Pipe = pipe
	case *parse.PipeNode:
		var kept []*parse.CommandNode
		for _, command := range node.Cmds {
			var left []parse.Node
			for _, argument := range command.Args {
				if argument = upToResponse(argument, cut); argument != nil {
					left = append(left, argument)
				}
			}
			if len(left) == 0 {
				return nil
			}
			command.Args = left
			kept = append(kept, command)
		}
		node.Cmds = kept
	}
	return node
}
