"""
llama.cpp: the pinned source and the programs built from it.

OUTPUTS:
    resources/llama.cpp/{version}/source/          the source tree, which also has the converters
    resources/llama.cpp/{version}/bin/{program}    one program
    resources/llama.cpp/{version}/bin/LICENSES.txt the licences of what the programs are made of

A program is built only if the configuration needs it and neither tools.llama_cpp nor PATH has it.
"""


rule fetch_llama_cpp:
    """Download the source of llama.cpp, or take the file in tools.llama_cpp_sdist, check its sha256 and unpack it."""
    output:
        record=f"{LLAMA_CPP}/source.json",
        converter=f"{LLAMA_CPP}/source/convert_hf_to_gguf.py",
    log:
        "logs/fetch_llama_cpp/source.log",
    benchmark:
        "benchmarks/fetch_llama_cpp/source.tsv"
    priority: 90
    retries: 2
    localrule: True
    conda:
        "../envs/llama_cpp.yaml"
    threads: ALL_CORES
    resources:
        mem_mb=500,
        disk_mb=500,
        alone=1,
    params:
        folder=subpath(output.record, parent=True),
        sdist=lambda wildcards, input: Later(lambda: CONFIG.llama_cpp_sdist or ""),
        script=script("fetch_llama_cpp"),
        code=code_digest("fetch_llama_cpp"),
    message:
        "Fetching the source of llama.cpp"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --output-dir {params.folder:q} \
            --sdist={params.sdist:q}
        """


rule build_llama_cpp:
    """Compile one program. Done once a machine, so with every core it may use, whatever --cores says.

    One at a time: they share a folder, and nodes of a cluster may not see each other's locks.
    """
    input:
        source=rules.fetch_llama_cpp.output.record,
        converter=ancient(rules.fetch_llama_cpp.output.converter),
    output:
        program=f"{LLAMA_CPP}/bin/{{program}}",
        record=f"{LLAMA_CPP}/bin/{{program}}.json",
    log:
        "logs/build_llama_cpp/{program}.log",
    benchmark:
        "benchmarks/build_llama_cpp/{program}.tsv"
    priority: 90
    conda:
        "../envs/llama_cpp.yaml"
    threads: THREADS
    resources:
        mem_mb=build_mem_mb,
        disk_mb=1000,
        compiling=1,
    params:
        source=subpath(input.converter, parent=True),
        jobs=lambda wildcards, input: BUILD_JOBS,
        script=script("build_llama_cpp"),
        code=code_digest("build_llama_cpp"),
    message:
        "Building {wildcards.program} (once; a few minutes)"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --source {params.source:q} \
            --program {wildcards.program:q} \
            --output {output.program:q} \
            --record {output.record:q} \
            --jobs {params.jobs}
        """
