"""Memory by formula, compared with what llama-fit-params itself printed.

The table was recorded with llama.cpp 0.5.0-dev (sdist llama-cpp-python 0.3.36, built for the processor) on GGUFs that are a
header and no weights, of the shapes below:

    llama-fit-params -m X.gguf -fitp on -c C*N -np N -ctk T -ctv T -fa on -b 512 -ub 512 --no-repack

It prints ``Host model context compute`` in MiB. The vocabulary of the GGUFs has 256 rows, so that the compute buffer is that
of llama-server, which reserves logits for its slots only.
"""

from typing import Any

import pytest

from ollamake.errors import OllamakeError
from ollamake.memory_formula import ARCHITECTURES, memory_by_formula

CONTEXTS = (4096, 8192, 32768, 131072)

# Name -> architecture, keys of the metadata, and a line for each type of cache and number of slots: "KV cache+compute
# buffer" in MiB at each of CONTEXTS tokens a slot. Phi-4 has no lines of 4 slots with a quantized cache: there llama.cpp
# itself aborts.
SHAPES = {
    "Llama-3-8B": (
        "llama",
        "block_count=32 embedding_length=4096 attention.head_count=32 attention.head_count_kv=8 "
        "feed_forward_length=14336 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  512+120  1024+124  4096+148  16384+244
        f16 4  2048+120  4096+124  16384+148  65536+244
        q8_0 1  272+120  544+116  2176+140  8704+236
        q8_0 4  1088+120  2176+116  8704+140  34816+236
        q4_0 1  144+120  288+116  1152+140  4608+236
        q4_0 4  576+120  1152+116  4608+140  18432+236
        """,
    ),
    "Llama-3-70B": (
        "llama",
        "block_count=80 embedding_length=8192 attention.head_count=64 attention.head_count_kv=8 "
        "feed_forward_length=28672 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  1280+236  2560+240  10240+264  40960+360
        f16 4  5120+236  10240+240  40960+264  163840+360
        q8_0 1  680+236  1360+240  5440+248  21760+344
        q8_0 4  2720+236  5440+240  21760+248  87040+344
        q4_0 1  360+236  720+240  2880+248  11520+344
        q4_0 4  1440+236  2880+240  11520+248  46080+344
        """,
    ),
    "Mixtral-8x7B": (
        "llama",
        "block_count=32 embedding_length=4096 attention.head_count=32 attention.head_count_kv=8 "
        "feed_forward_length=14336 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128 expert_count=8 expert_used_count=2",
        """
        f16 1  512+204  1024+208  4096+232  16384+328
        f16 4  2048+204  4096+208  16384+232  65536+328
        q8_0 1  272+204  544+200  2176+224  8704+320
        q8_0 4  1088+204  2176+200  8704+224  34816+320
        q4_0 1  144+204  288+200  1152+224  4608+320
        q4_0 4  576+204  1152+200  4608+224  18432+320
        """,
    ),
    "Qwen2.5-32B": (
        "qwen2",
        "block_count=64 embedding_length=5120 attention.head_count=40 attention.head_count_kv=8 "
        "feed_forward_length=27648 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  1024+206  2048+210  8192+234  32768+330
        f16 4  4096+206  8192+210  32768+234  131072+330
        q8_0 1  544+206  1088+210  4352+224  17408+320
        q8_0 4  2176+206  4352+210  17408+224  69632+320
        q4_0 1  288+206  576+210  2304+224  9216+320
        q4_0 4  1152+206  2304+210  9216+224  36864+320
        """,
    ),
    "Qwen2.5-0.5B": (
        "qwen2",
        "block_count=24 embedding_length=896 attention.head_count=14 attention.head_count_kv=2 "
        "feed_forward_length=4864 attention.key_length=64 attention.value_length=64 rope.dimension_count=64",
        """
        f16 1  48+39  96+43  384+67  1536+163
        f16 4  192+39  384+43  1536+67  6144+163
        q8_0 1  25+37  51+41  204+65  816+161
        q8_0 4  102+37  204+41  816+65  3264+161
        q4_0 1  13+37  27+41  108+65  432+161
        q4_0 4  54+37  108+41  432+65  1728+161
        """,
    ),
    "Qwen3-32B": (
        "qwen3",
        "block_count=64 embedding_length=5120 attention.head_count=64 attention.head_count_kv=8 "
        "feed_forward_length=25600 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  1024+200  2048+204  8192+228  32768+324
        f16 4  4096+200  8192+204  32768+228  131072+324
        q8_0 1  544+200  1088+204  4352+228  17408+324
        q8_0 4  2176+200  4352+204  17408+228  69632+324
        q4_0 1  288+200  576+204  2304+228  9216+324
        q4_0 4  1152+200  2304+204  9216+228  36864+324
        """,
    ),
    "Qwen3-30B-A3B": (
        "qwen3moe",
        "block_count=48 embedding_length=2048 attention.head_count=32 attention.head_count_kv=4 "
        "feed_forward_length=6144 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128 expert_count=128 expert_used_count=8 expert_feed_forward_length=768",
        """
        f16 1  384+92  768+96  3072+120  12288+216
        f16 4  1536+92  3072+96  12288+120  49152+216
        q8_0 1  204+92  408+96  1632+120  6528+216
        q8_0 4  816+92  1632+96  6528+120  26112+216
        q4_0 1  108+92  216+96  864+120  3456+216
        q4_0 4  432+92  864+96  3456+120  13824+216
        """,
    ),
    "Qwen1.5-MoE-A2.7B": (
        "qwen2moe",
        "block_count=24 embedding_length=2048 attention.head_count=16 attention.head_count_kv=16 "
        "feed_forward_length=5632 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128 expert_count=60 expert_used_count=4 expert_feed_forward_length=1408 "
        "expert_shared_feed_forward_length=5632",
        """
        f16 1  768+58  1536+62  6144+86  24576+182
        f16 4  3072+58  6144+62  24576+86  98304+182
        q8_0 1  408+58  816+62  3264+86  13056+182
        q8_0 4  1632+58  3264+62  13056+86  52224+182
        q4_0 1  216+58  432+62  1728+86  6912+182
        q4_0 4  864+58  1728+62  6912+86  27648+182
        """,
    ),
    "Mistral-Small-24B": (
        "mistral3",
        "block_count=40 embedding_length=5120 attention.head_count=32 attention.head_count_kv=8 "
        "feed_forward_length=32768 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  640+244  1280+248  5120+262  20480+358
        f16 4  2560+244  5120+248  20480+262  81920+358
        q8_0 1  340+242  680+246  2720+270  10880+366
        q8_0 4  1360+242  2720+246  10880+270  43520+366
        q4_0 1  180+242  360+246  1440+270  5760+366
        q4_0 4  720+242  1440+246  5760+270  23040+366
        """,
    ),
    "Phi-3-mini": (
        "phi3",
        "block_count=32 embedding_length=3072 attention.head_count=32 attention.head_count_kv=32 "
        "feed_forward_length=8192 attention.key_length=96 attention.value_length=96 rope.dimension_count=96 "
        "attention.sliding_window=2047",
        """
        f16 1  1536+70  3072+74  12288+98  49152+194
        f16 4  6144+70  12288+74  49152+98  196608+194
        q8_0 1  816+70  1632+74  6528+98  26112+194
        q8_0 4  3264+70  6528+74  26112+98  104448+194
        q4_0 1  432+70  864+74  3456+98  13824+194
        q4_0 4  1728+70  3456+74  13824+98  55296+194
        """,
    ),
    "Phi-4": (
        "phi3",
        "block_count=40 embedding_length=5120 attention.head_count=40 attention.head_count_kv=10 "
        "feed_forward_length=17920 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  800+149  1600+153  6400+167  25600+263
        f16 4  3200+149  6400+153  25600+167  102400+263
        q8_0 1  425+149  850+153  3400+167  13600+263
        q4_0 1  225+149  450+153  1800+167  7200+263
        """,
    ),
    "Gemma-7B": (
        "gemma",
        "block_count=28 embedding_length=3072 attention.head_count=16 attention.head_count_kv=16 "
        "feed_forward_length=24576 attention.key_length=256 attention.value_length=256 "
        "rope.dimension_count=256",
        """
        f16 1  1792+174  3584+178  14336+202  57344+298
        f16 4  7168+174  14336+178  57344+202  229376+298
        q8_0 1  952+174  1904+178  7616+202  30464+298
        q8_0 4  3808+174  7616+178  30464+202  121856+298
        q4_0 1  504+174  1008+178  4032+202  16128+298
        q4_0 4  2016+174  4032+178  16128+202  64512+298
        """,
    ),
    "Gemma-2-9B": (
        "gemma2",
        "block_count=42 embedding_length=3584 attention.head_count=16 attention.head_count_kv=8 "
        "feed_forward_length=14336 attention.key_length=256 attention.value_length=256 "
        "rope.dimension_count=256 attention.sliding_window=4096",
        """
        f16 1  1344+121  2100+125  6132+149  22260+245
        f16 4  5376+121  8400+125  24528+149  89040+245
        q8_0 1  714+121  1115+126  3257+150  11825+246
        q8_0 4  2856+121  4462+126  13030+150  47302+246
        q4_0 1  378+121  590+126  1724+150  6260+246
        q4_0 4  1512+121  2362+126  6898+150  25042+246
        """,
    ),
    "Gemma-3-4B": (
        "gemma3",
        "block_count=34 embedding_length=2560 attention.head_count=8 attention.head_count_kv=4 "
        "feed_forward_length=10240 attention.key_length=256 attention.value_length=256 "
        "rope.dimension_count=256 attention.sliding_window=1024",
        """
        f16 1  254+84  334+88  814+112  2734+208
        f16 4  1016+84  1336+88  3256+112  10936+208
        q8_0 1  134+89  177+93  432+117  1452+213
        q8_0 4  539+89  709+93  1729+117  5809+213
        q4_0 1  71+89  93+93  228+117  768+213
        q4_0 4  285+89  375+93  915+117  3075+213
        """,
    ),
    "Gemma-3-12B": (
        "gemma3",
        "block_count=48 embedding_length=3840 attention.head_count=16 attention.head_count_kv=8 "
        "feed_forward_length=15360 attention.key_length=256 attention.value_length=256 "
        "rope.dimension_count=256 attention.sliding_window=1024",
        """
        f16 1  736+126  992+130  2528+154  8672+250
        f16 4  2944+126  3968+130  10112+154  34688+250
        q8_0 1  391+126  527+130  1343+154  4607+250
        q8_0 4  1564+126  2108+130  5372+154  18428+250
        q4_0 1  207+126  279+130  711+154  2439+250
        q4_0 4  828+126  1116+130  2844+154  9756+250
        """,
    ),
    "Gemma-3-27B": (
        "gemma3",
        "block_count=62 embedding_length=5376 attention.head_count=32 attention.head_count_kv=16 "
        "feed_forward_length=21504 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128 attention.sliding_window=1024",
        """
        f16 1  944+181  1264+177  3184+199  10864+295
        f16 4  3776+181  5056+177  12736+199  43456+295
        q8_0 1  501+179  671+183  1691+207  5771+303
        q8_0 4  2006+179  2686+183  6766+207  23086+303
        q4_0 1  265+179  355+183  895+207  3055+303
        q4_0 4  1062+179  1422+183  3582+207  12222+303
        """,
    ),
    "gpt-oss-20b": (
        "gpt-oss",
        "block_count=24 embedding_length=2880 attention.head_count=64 attention.head_count_kv=8 "
        "attention.key_length=64 attention.value_length=64 rope.dimension_count=64 expert_count=32 "
        "expert_used_count=4 expert_feed_forward_length=2880 attention.sliding_window=128",
        """
        f16 1  114+97  210+101  786+125  3090+221
        f16 4  456+97  840+101  3144+125  12360+221
        q8_0 1  60+97  111+101  417+125  1641+221
        q8_0 4  242+97  446+101  1670+125  6566+221
        q4_0 1  32+97  59+101  221+125  869+221
        q4_0 4  128+97  236+101  884+125  3476+221
        """,
    ),
    "Command-R7B": (
        "cohere2",
        "block_count=32 embedding_length=4096 attention.head_count=32 attention.head_count_kv=8 "
        "feed_forward_length=14336 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128 attention.sliding_window=4096",
        """
        f16 1  512+132  688+136  1456+160  4528+256
        f16 4  2048+132  2752+136  5824+160  18112+256
        q8_0 1  272+132  365+136  773+160  2405+256
        q8_0 4  1088+132  1462+136  3094+160  9622+256
        q4_0 1  144+132  193+136  409+160  1273+256
        q4_0 4  576+132  774+136  1638+160  5094+256
        """,
    ),
    "OLMo-2-7B": (
        "olmo2",
        "block_count=32 embedding_length=4096 attention.head_count=32 attention.head_count_kv=32 "
        "feed_forward_length=11008 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  2048+100  4096+104  16384+128  65536+224
        f16 4  8192+100  16384+104  65536+128  262144+224
        q8_0 1  1088+100  2176+104  8704+128  34816+224
        q8_0 4  4352+100  8704+104  34816+128  139264+224
        q4_0 1  576+100  1152+104  4608+128  18432+224
        q4_0 4  2304+100  4608+104  18432+128  73728+224
        """,
    ),
    "OLMo-3-7B": (
        "olmo2",
        "block_count=32 embedding_length=4096 attention.head_count=32 attention.head_count_kv=32 "
        "feed_forward_length=11008 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128 attention.sliding_window=4096",
        """
        f16 1  2048+104  2752+109  5824+133  18112+229
        f16 4  8192+104  11008+109  23296+133  72448+229
        q8_0 1  1088+104  1462+109  3094+133  9622+229
        q8_0 4  4352+104  5848+109  12376+133  38488+229
        q4_0 1  576+104  774+109  1638+133  5094+229
        q4_0 4  2304+104  3096+109  6552+133  20376+229
        """,
    ),
    "OLMoE-1B-7B": (
        "olmoe",
        "block_count=16 embedding_length=2048 attention.head_count=16 attention.head_count_kv=16 "
        "feed_forward_length=1024 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128 expert_count=64 expert_used_count=8",
        """
        f16 1  512+68  1024+72  4096+96  16384+192
        f16 4  2048+68  4096+72  16384+96  65536+192
        q8_0 1  272+64  544+68  2176+92  8704+188
        q8_0 4  1088+64  2176+68  8704+92  34816+188
        q4_0 1  144+64  288+68  1152+92  4608+188
        q4_0 4  576+64  1152+68  4608+92  18432+188
        """,
    ),
    "EXAONE-4-32B": (
        "exaone4",
        "block_count=64 embedding_length=5120 attention.head_count=40 attention.head_count_kv=8 "
        "feed_forward_length=27392 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128 attention.sliding_window=4096",
        """
        f16 1  1024+208  1376+213  2912+237  9056+333
        f16 4  4096+208  5504+213  11648+237  36224+333
        q8_0 1  544+208  731+213  1547+237  4811+333
        q8_0 4  2176+208  2924+213  6188+237  19244+333
        q4_0 1  288+208  387+213  819+237  2547+333
        q4_0 4  1152+208  1548+213  3276+237  10188+333
        """,
    ),
    "Seed-OSS-36B": (
        "seed_oss",
        "block_count=64 embedding_length=5120 attention.head_count=80 attention.head_count_kv=8 "
        "feed_forward_length=27648 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  1024+216  2048+220  8192+244  32768+340
        f16 4  4096+216  8192+220  32768+244  131072+340
        q8_0 1  544+216  1088+220  4352+244  17408+340
        q8_0 4  2176+216  4352+220  17408+244  69632+340
        q4_0 1  288+216  576+220  2304+244  9216+340
        q4_0 4  1152+216  2304+220  9216+244  36864+340
        """,
    ),
    "GLM-4-9B": (
        "glm4",
        "block_count=40 embedding_length=4096 attention.head_count=32 attention.head_count_kv=2 "
        "feed_forward_length=13696 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  160+116  320+120  1280+144  5120+240
        f16 4  640+116  1280+120  5120+144  20480+240
        q8_0 1  85+116  170+112  680+136  2720+232
        q8_0 4  340+116  680+112  2720+136  10880+232
        q4_0 1  45+116  90+112  360+136  1440+232
        q4_0 4  180+116  360+112  1440+136  5760+232
        """,
    ),
    "Granite-3.3-8B": (
        "granite",
        "block_count=40 embedding_length=4096 attention.head_count=32 attention.head_count_kv=8 "
        "feed_forward_length=12800 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  640+111  1280+115  5120+139  20480+235
        f16 4  2560+111  5120+115  20480+139  81920+235
        q8_0 1  340+111  680+107  2720+131  10880+227
        q8_0 4  1360+111  2720+107  10880+131  43520+227
        q4_0 1  180+111  360+107  1440+131  5760+227
        q4_0 4  720+111  1440+107  5760+131  23040+227
        """,
    ),
    "SmolLM3-3B": (
        "smollm3",
        "block_count=36 embedding_length=2048 attention.head_count=16 attention.head_count_kv=4 "
        "feed_forward_length=11008 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  288+84  576+88  2304+112  9216+208
        f16 4  1152+84  2304+88  9216+112  36864+208
        q8_0 1  153+80  306+84  1224+108  4896+204
        q8_0 4  612+80  1224+84  4896+108  19584+204
        q4_0 1  81+80  162+84  648+108  2592+204
        q4_0 4  324+80  648+84  2592+108  10368+204
        """,
    ),
    "ERNIE-4.5-0.3B": (
        "ernie4_5",
        "block_count=18 embedding_length=1024 attention.head_count=16 attention.head_count_kv=2 "
        "feed_forward_length=3072 attention.key_length=128 attention.value_length=128 "
        "rope.dimension_count=128",
        """
        f16 1  72+30  144+34  576+58  2304+154
        f16 4  288+30  576+34  2304+58  9216+154
        q8_0 1  38+30  76+34  306+58  1224+154
        q8_0 4  153+30  306+34  1224+58  4896+154
        q4_0 1  20+30  40+34  162+58  648+154
        q4_0 4  81+30  162+34  648+58  2592+154
        """,
    ),
    "DeepSeek-V2-Lite": (
        "deepseek2",
        "block_count=27 embedding_length=2048 attention.head_count=16 attention.head_count_kv=1 "
        "feed_forward_length=10944 expert_count=64 expert_used_count=6 expert_feed_forward_length=1408 "
        "expert_shared_count=2 leading_dense_block_count=1 attention.kv_lora_rank=512 rope.dimension_count=64 "
        "attention.key_length=576 attention.value_length=512 attention.key_length_mla=192 "
        "attention.value_length_mla=128 expert_gating_func=1",
        """
        f16 1  121+93  243+97  972+121  3888+217
        f16 4  486+93  972+97  3888+121  15552+217
        q8_0 1  64+93  129+97  516+121  2065+217
        q8_0 4  258+93  516+97  2065+121  8262+217
        q4_0 1  34+93  68+97  273+121  1093+217
        q4_0 4  136+93  273+97  1093+121  4374+217
        """,
    ),
    "DeepSeek-V3": (
        "deepseek2",
        "block_count=61 embedding_length=7168 attention.head_count=128 attention.head_count_kv=1 "
        "feed_forward_length=18432 expert_count=256 expert_used_count=8 expert_feed_forward_length=2048 "
        "expert_shared_count=1 leading_dense_block_count=3 attention.kv_lora_rank=512 rope.dimension_count=64 "
        "attention.key_length=576 attention.value_length=512 attention.key_length_mla=192 "
        "attention.value_length_mla=128 expert_gating_func=2 attention.q_lora_rank=1536",
        """
        f16 1  274+412  549+416  2196+440  8784+536
        f16 4  1098+412  2196+416  8784+440  35136+536
        q8_0 1  145+412  291+416  1166+440  4666+536
        q8_0 4  583+412  1166+416  4666+440  18666+536
        q4_0 1  77+412  154+416  617+440  2470+536
        q4_0 4  308+412  617+416  2470+440  9882+536
        """,
    ),
    "Qwen3-Next-80B-A3B": (
        "qwen3next",
        "block_count=48 embedding_length=2048 attention.head_count=16 attention.head_count_kv=2 "
        "feed_forward_length=5120 attention.key_length=256 attention.value_length=256 rope.dimension_count=64 "
        "ssm.conv_kernel=4 ssm.inner_size=4096 ssm.state_size=128 ssm.time_step_rank=32 ssm.group_count=16 "
        "full_attention_interval=4 expert_count=512 expert_used_count=10 expert_feed_forward_length=512 "
        "expert_shared_feed_forward_length=512",
        """
        f16 1  171+90  267+94  843+118  3147+214
        f16 4  685+90  1069+94  3373+118  12589+214
        q8_0 1  126+90  177+94  483+118  1707+214
        q8_0 4  505+90  709+94  1933+118  6829+214
        q4_0 1  102+90  129+94  291+118  939+214
        q4_0 4  409+90  517+94  1165+118  3757+214
        """,
    ),
    "Qwen3.5-27B": (
        "qwen35",
        "block_count=64 embedding_length=5120 attention.head_count=24 attention.head_count_kv=4 "
        "feed_forward_length=17408 attention.key_length=256 attention.value_length=256 "
        "rope.dimension_count=64 ssm.conv_kernel=4 ssm.inner_size=6144 ssm.state_size=128 "
        "ssm.time_step_rank=48 ssm.group_count=16 full_attention_interval=4",
        """
        f16 1  405+136  661+140  2197+164  8341+260
        f16 4  1622+136  2646+140  8790+164  33366+260
        q8_0 1  285+136  421+140  1237+164  4501+260
        q8_0 4  1142+136  1686+140  4950+164  18006+260
        q4_0 1  221+136  293+140  725+164  2453+260
        q4_0 4  886+136  1174+140  2902+164  9814+260
        """,
    ),
    "Qwen3.5-35B-A3B": (
        "qwen35moe",
        "block_count=40 embedding_length=2048 attention.head_count=16 attention.head_count_kv=2 "
        "attention.key_length=256 attention.value_length=256 rope.dimension_count=64 ssm.conv_kernel=4 "
        "ssm.inner_size=4096 ssm.state_size=128 ssm.time_step_rank=32 ssm.group_count=16 "
        "full_attention_interval=4 expert_count=256 expert_used_count=8 expert_feed_forward_length=512 "
        "expert_shared_feed_forward_length=512",
        """
        f16 1  142+76  222+80  702+104  2622+200
        f16 4  571+76  891+80  2811+104  10491+200
        q8_0 1  105+76  147+80  402+104  1422+200
        q8_0 4  421+76  591+80  1611+104  5691+200
        q4_0 1  85+76  107+80  242+104  782+200
        q4_0 4  341+76  431+80  971+104  3131+200
        """,
    ),
    "LFM2-1.2B": (
        "lfm2",
        "block_count=16 embedding_length=2048 attention.head_count=32 "
        "attention.head_count_kv=0,0,8,0,0,8,0,0,8,0,8,0,8,0,8,0 feed_forward_length=8192 shortconv.l_cache=3",
        """
        f16 1  48+64  96+68  384+92  1536+188
        f16 4  192+64  384+68  1536+92  6144+188
        q8_0 1  25+64  51+68  204+92  816+188
        q8_0 4  102+64  204+68  816+92  3264+188
        q4_0 1  13+64  27+68  108+92  432+188
        q4_0 4  54+64  108+68  432+92  1728+188
        """,
    ),
}


def _metadata(name: str) -> dict[str, Any]:
    architecture, keys, _ = SHAPES[name]
    metadata: dict[str, Any] = {"general.architecture": architecture}
    for key, text in (pair.split("=") for pair in keys.split()):
        values = [int(value) for value in text.split(",")]
        metadata[f"{architecture}.{key}"] = values if len(values) > 1 else values[0]
    return metadata


def _printed(name: str) -> list[tuple[str, int, int, int, int]]:
    """Return rows of type of cache, slots, context, KV cache, compute buffer."""
    rows = []
    for line in SHAPES[name][2].split("\n"):
        if line.strip():
            kv, slots, *figures = line.split()
            for context, figure in zip(CONTEXTS, figures, strict=True):
                kv_mib, compute_mib = figure.split("+")
                rows.append((kv, int(slots), context, int(kv_mib), int(compute_mib)))
    return rows


def _close(found: int, printed: int) -> bool:
    return abs(found - printed) <= 0.03 * printed + 16


@pytest.mark.parametrize("name", SHAPES)
def test_as_llama_fit_params(name: str) -> None:
    rows = _printed(name)
    assert {row[0] for row in rows} == {"f16", "q8_0", "q4_0"}
    for kv, slots, context, kv_mib, compute_mib in rows:
        found = memory_by_formula(_metadata(name), kv, slots, context)
        assert found is not None
        assert found[0] == kv_mib, (kv, slots, context)
        assert _close(found[1], compute_mib), (kv, slots, context, found[1], compute_mib)


def test_every_architecture_was_compared() -> None:
    assert {architecture for architecture, _, _ in SHAPES.values()} == ARCHITECTURES


@pytest.mark.parametrize(
    ("name", "slots", "context", "kv_mib", "compute_mib"),
    [
        ("Llama-3-8B", 3, 5000, 1920, 121),  # Each slot is rounded up to 5120 cells.
        ("Llama-3-8B", 1, 256, 32, 58),  # The micro-batch is as small as the context ...
        ("Llama-3-8B", 4, 100, 128, 90),  # ... as it was asked, not as it was rounded.
        ("Gemma-3-12B", 2, 512, 384, 121),  # The window is wider than the context.
        ("Gemma-3-12B", 3, 1000, 1152, 122),
        ("gpt-oss-20b", 1, 300, 24, 54),
        ("Qwen3.5-27B", 3, 5000, 1408, 137),  # The state of recurrent layers is there once a slot.
        ("DeepSeek-V3", 3, 5000, 1029, 413),
    ],
)
def test_contexts_that_llama_cpp_rounds(name: str, slots: int, context: int, kv_mib: int, compute_mib: int) -> None:
    """Printed by llama-fit-params as above, with an f16 cache."""
    found = memory_by_formula(_metadata(name), "f16", slots, context)
    assert found is not None
    assert found[0] == kv_mib
    assert _close(found[1], compute_mib)


def test_heads_that_a_quantized_cache_cannot_hold() -> None:
    """Heads of 80 elements: llama-fit-params says 160 and 64 MiB for f16, and that q8_0 does not divide them."""
    metadata = _llama(block_count=4, embedding_length=2560, feed_forward_length=6912)
    assert memory_by_formula(metadata, "f16", 1, 4096) == (160, 64)
    assert memory_by_formula(metadata, "q8_0", 1, 4096) is None
    assert memory_by_formula(metadata, "q4_0", 1, 4096) is None


def test_the_pattern_of_windows_may_be_a_list_or_a_number() -> None:
    metadata = _metadata("Gemma-3-4B")
    key = "gemma3.attention.sliding_window_pattern"
    expected = memory_by_formula(metadata, "f16", 1, 32768)
    assert memory_by_formula(metadata | {key: [layer % 6 != 5 for layer in range(34)]}, "f16", 1, 32768) == expected
    assert memory_by_formula(metadata | {key: 6}, "f16", 1, 32768) == expected
    every_layer = memory_by_formula(metadata | {"gemma3.attention.sliding_window": 0}, "f16", 1, 32768)
    assert every_layer is not None
    assert every_layer[0] == 34 * 32768 * 4 * 512 * 2 >> 20


def test_layers_that_predict_further_tokens_take_no_cache() -> None:
    metadata = _metadata("Qwen3.5-27B")
    more = metadata | {"qwen35.block_count": 65, "qwen35.nextn_predict_layers": 1}
    assert memory_by_formula(more, "f16", 1, 8192) == memory_by_formula(metadata, "f16", 1, 8192)


@pytest.mark.parametrize("architecture", ["rwkv7", "mamba2", "gemma3n", "deepseek4", "t5", "", None])
def test_an_unknown_architecture_needs_the_program(architecture: str | None) -> None:
    metadata = _llama() | {"general.architecture": architecture}
    with pytest.raises(OllamakeError, match=rf"{architecture}.*llama-fit-params is needed"):
        memory_by_formula(metadata, "f16", 1, 4096)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("Llama-3-8B", {"llama.block_count": None}, "llama.block_count: expected a whole number from 1; found None"),
        ("Llama-3-8B", {"llama.block_count": 0}, "llama.block_count: expected a whole number from 1; found 0"),
        ("Llama-3-8B", {"llama.embedding_length": "4096"}, "found '4096'"),
        ("Llama-3-8B", {"llama.attention.head_count": [32, 32]}, "one for each of 32 layers; found [32, 32]"),
        ("Llama-3-8B", {"llama.feed_forward_length": None}, "llama.feed_forward_length"),
        ("Mixtral-8x7B", {"llama.expert_used_count": None}, "llama.expert_used_count"),
        ("Granite-3.3-8B", {"granite.expert_count": 8, "granite.expert_used_count": 2}, "llama-fit-params is needed"),
        ("Command-R7B", {"cohere2.attention.sliding_window": None}, "cohere2.attention.sliding_window"),
        ("LFM2-1.2B", {"lfm2.attention.sliding_window": 1024}, "llama-fit-params is needed"),
        ("DeepSeek-V3", {"deepseek2.attention.key_length_mla": None}, "before multi-head latent attention"),
        ("Qwen3.5-27B", {"qwen35.ssm.state_size": None}, "qwen35.ssm.state_size"),
    ],
)
def test_metadata_without_a_formula(name: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(OllamakeError) as caught:
        memory_by_formula(_metadata(name) | changed, "f16", 1, 4096)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kv", "slots", "context"), [("q5_1", 1, 4096), ("F16", 1, 4096), ("f16", 0, 4096), ("f16", 1, 0)]
)
def test_what_cannot_be_asked(kv: str, slots: int, context: int) -> None:
    with pytest.raises(OllamakeError, match="expected a KV cache of f16, q8_0, q4_0"):
        memory_by_formula(_llama(), kv, slots, context)


def _llama(**keys: int) -> dict[str, Any]:
    """Return the metadata of a small llama whose heads have 80 elements and no key says so."""
    shape = {"block_count": 4, "embedding_length": 2560, "feed_forward_length": 6912, "attention.head_count": 32} | keys
    return {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in shape.items()}
