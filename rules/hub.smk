"""
What is on the Hugging Face hub -> files here, each at the commit that it was pinned to.

REQUIRED INPUTS:
    none: `base: org/name` or `adapter: org/name@revision` in the configuration, where no such folder is here

OUTPUTS:
    results/{model}/sources.json                      commit, needed files, their sizes and digests
    resources/hub/{repo}/{tree}/headers.json          the headers of a base's weights: enough to check and plan the merge
    resources/hub/{repo}/{tree}/checked               the models that are made from it have passed their checks
    resources/hub/{repo}/{tree}/{weights_file}        one job a shard
    resources/hub/{repo}/{tree}/{small_file}          config, tokenizer, adapter

{tree} stands for the content of the needed files, so a commit that changes none of them rebuilds nothing. A branch that
moves is followed when that is asked for: `--forcerun pin_sources`. What is pinned decides on the bytes, so code does not:
scripts and library are no inputs here, and nothing is fetched again because one of them has changed.

Address and token are huggingface_hub's: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE; files that its cache (HF_HOME) has are linked.
These jobs run where Snakemake does: on a cluster, machines that compute often see no network.
"""


checkpoint pin_sources:
    """Ask once which commit a branch or tag is, and which of its files are needed."""
    output:
        update("results/{model}/sources.json"),
    log:
        "logs/pin_sources/{model}.log",
    priority: 110
    localrule: True
    conda:
        "../envs/hub.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("pin_sources"),
        spec=pin_spec,
        known=pins_so_far,
        renew=asks_for_renewal,
    message:
        "Pinning what {wildcards.model} has from the hub"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --spec {params.spec:q} \
            --known {params.known:q} \
            {params.renew} \
            --output {output:q}
        """


rule fetch_headers:
    """Fetch the headers of a base's weights: a few hundred kB."""
    output:
        "resources/hub/{repo}/{tree}/headers.json",
    log:
        "logs/fetch_headers/{repo}/{tree}.log",
    priority: 105
    localrule: True
    conda:
        "../envs/hub.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("fetch_headers"),
        weights=headers_to_fetch,
        commit=commit_to_fetch,
    message:
        "Fetching the headers of {wildcards.repo}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --repo {wildcards.repo:q} \
            --commit {params.commit:q} \
            --weights {params.weights:q} \
            --output {output:q}
        """


rule allow_downloads:
    """Hold back the large files until the models that they are for have been checked."""
    input:
        checks_before_download,
    output:
        touch("resources/hub/{repo}/{tree}/checked"),
    priority: 90
    localrule: True
    message:
        "{wildcards.repo} may be downloaded"


rule fetch_shard:
    """Fetch one weight file of a base, or link it where the cache has it."""
    input:
        ancient("resources/hub/{repo}/{tree}/checked"),
    output:
        kept("resources/hub/{repo}/{tree}/{weights_file}", CONFIG.keep_downloads),
    log:
        "logs/fetch_shard/{repo}/{tree}/{weights_file}.log",
    benchmark:
        "benchmarks/fetch_shard/{repo}/{tree}/{weights_file}.tsv"
    priority: fetched_by_turn
    localrule: True
    conda:
        "../envs/hub.yaml"
    resources:
        mem_mb=500,
        disk_mb=fetch_disk_mb,
    params:
        script=script("fetch_file"),
        file=weights_to_fetch,
        commit=commit_to_fetch,
    message:
        "Fetching {wildcards.weights_file} of {wildcards.repo}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --file {params.file:q} \
            --commit {params.commit:q} \
            --output {output:q}
        """


rule fetch_file:
    """Fetch a small file, or the weights of an adapter."""
    output:
        "resources/hub/{repo}/{tree}/{small_file}",
    log:
        "logs/fetch_file/{repo}/{tree}/{small_file}.log",
    priority: 105
    localrule: True
    conda:
        "../envs/hub.yaml"
    resources:
        mem_mb=500,
    params:
        script=script("fetch_file"),
        file=small_file_to_fetch,
        commit=commit_to_fetch,
    message:
        "Fetching {wildcards.small_file} of {wildcards.repo}"
    shell:
        r"""
        exec &> >(tee {log:q})
        python {params.script:q} \
            --file {params.file:q} \
            --commit {params.commit:q} \
            --output {output:q}
        """
