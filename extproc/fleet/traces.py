"""Length distributions of public traces, as tables instead of downloads.

For the Azure LLM inference trace 2023 (Azure/AzurePublicDataset, files
``AzureLLMInferenceTrace_code`` and ``_conv``, CC BY 4.0; Patel et al., "Splitwise",
ISCA 2024), the tables have quantiles of prompts. For each eighth of the requests by
prompt length, they also have quantiles of outputs, which keeps the dependence of
outputs on prompts. Values between quantiles are interpolated. The means and the shares
under 2,048 to 8,192 tokens are within 1 % of those of the trace.

For LMSYS-Chat-1M and the agent mixture, the tables have cumulative shares of total
tokens, as published in vllm-project/semantic-router, ``src/fleet-sim/data``
(Apache-2.0). The agent mixture is synthetic according to its authors. LMSYS-Chat-1M has
no published division into prompt and output. Its mean response has 214.5 tokens (Zheng
et al., arXiv 2309.11998, table 1); its mean prompt there, 69.5 tokens, is without the
history that the totals include.
"""

#: Probabilities of the prompt quantiles: k/64, and the tail.
PROMPT_PROBABILITIES = (*(k / 64 for k in range(64)), 0.99, 0.995, 0.999, 0.9999, 1.0)
#: Probabilities of the output quantiles: k/16, and the tail.
OUTPUT_PROBABILITIES = (*(k / 16 for k in range(16)), 0.97, 0.985, 0.995, 1.0)

# fmt: off
#: Prompt tokens of the 8,819 requests of the 2023 code trace.
AZURE_CODE_PROMPTS = (
    3, 26, 51, 71, 90, 106, 137, 161, 185, 209, 245, 291, 348, 392, 462, 518, 578, 629,
    700, 762, 825, 875, 915, 967, 1016, 1050, 1093, 1139, 1196, 1269, 1342, 1391, 1469,
    1538, 1605, 1673, 1734, 1813, 1885, 1960, 2048, 2129, 2195, 2294, 2375, 2444, 2539,
    2644, 2745, 2851, 2982, 3154, 3330, 3569, 3776, 4102, 4434, 4769, 5511, 6040, 6499,
    7408, 7435, 7436, 7436, 7436, 7437, 7437, 7437,
)
#: Output tokens, with one row for each eighth of the requests by prompt length,
#: shortest prompts first.
AZURE_CODE_OUTPUTS = (
    (
        6, 6, 7, 8, 9, 10, 11, 13, 14, 15, 17, 18, 21, 26, 40, 63, 98, 132, 397, 1899,
    ),
    (
        6, 6, 7, 9, 9, 10, 11, 13, 14, 16, 18, 23, 28, 39, 55, 94, 159, 211, 285, 592,
    ),
    (
        6, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 19, 24, 31, 50, 84, 149, 214, 341, 841,
    ),
    (
        6, 6, 7, 8, 9, 10, 10, 12, 13, 14, 16, 18, 22, 28, 39, 61, 103, 162, 244, 824,
    ),
    (
        6, 6, 7, 8, 9, 9, 10, 12, 13, 15, 18, 21, 27, 37, 55, 87, 139, 239, 391, 871,
    ),
    (
        6, 6, 7, 8, 8, 9, 10, 11, 12, 13, 15, 17, 21, 28, 39, 64, 103, 172, 343, 940,
    ),
    (
        6, 6, 7, 8, 9, 9, 10, 11, 12, 14, 16, 19, 23, 30, 47, 94, 168, 283, 607, 928,
    ),
    (
        6, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17, 20, 25, 34, 46, 79, 127, 172, 310, 697,
    ),
)

#: Prompt tokens of the 19,366 requests of the 2023 conv trace.
AZURE_CONV_PROMPTS = (
    2, 64, 165, 181, 194, 200, 206, 212, 235, 321, 374, 378, 383, 388, 391, 394, 396,
    398, 401, 403, 405, 408, 412, 419, 428, 459, 818, 910, 966, 986, 1001, 1011, 1020,
    1028, 1037, 1044, 1052, 1059, 1067, 1075, 1083, 1092, 1100, 1110, 1120, 1133, 1147,
    1164, 1189, 1233, 1312, 1315, 1335, 1479, 1770, 2019, 2310, 2584, 3018, 4074, 4079,
    4084, 4089, 4107, 4142, 4831, 6212, 7930, 14050,
)
#: Output tokens, with one row for each eighth of the requests by prompt length,
#: shortest prompts first.
AZURE_CONV_OUTPUTS = (
    (
        11, 49, 73, 90, 105, 119, 133, 148, 161, 162, 170, 179, 186, 205, 217, 217, 224,
        259, 335, 1000,
    ),
    (
        7, 18, 48, 58, 63, 68, 73, 78, 82, 86, 89, 92, 96, 101, 108, 123, 136, 152, 173,
        436,
    ),
    (
        25, 81, 85, 88, 90, 92, 95, 97, 99, 102, 105, 109, 115, 124, 134, 147, 161, 175,
        194, 200,
    ),
    (
        10, 64, 83, 90, 97, 107, 122, 373, 387, 394, 396, 402, 411, 418, 429, 464, 544,
        590, 622, 921,
    ),
    (
        33, 373, 383, 389, 394, 396, 397, 401, 407, 411, 414, 420, 429, 437, 462, 528,
        593, 645, 939, 1000,
    ),
    (
        28, 121, 377, 386, 393, 396, 396, 400, 405, 411, 415, 421, 428, 438, 466, 536,
        605, 641, 907, 1000,
    ),
    (
        15, 50, 59, 71, 82, 91, 101, 115, 134, 149, 166, 187, 210, 373, 399, 420, 456,
        526, 616, 954,
    ),
    (
        17, 32, 38, 42, 46, 49, 53, 58, 64, 71, 77, 86, 98, 112, 131, 152, 171, 210,
        336, 757,
    ),
)
# fmt: on

#: Pairs of a number of tokens (prompt and output together) and the share of requests
#: with at most this number.
LMSYS_TOTALS = (
    (64, 0.13144),
    (128, 0.23595),
    (256, 0.38248),
    (512, 0.63833),
    (768, 0.75798),
    (1_024, 0.83066),
    (1_536, 0.90886),
    (2_048, 0.94828),
    (3_072, 0.97287),
    (4_096, 0.98374),
    (6_144, 0.99289),
    (8_192, 0.99653),
    (12_288, 0.99863),
    (16_384, 0.99926),
    (24_576, 0.99966),
    (32_768, 0.99979),
    (49_152, 0.99984),
    (65_536, 1.0),
)

#: Pairs of total tokens and share, as above, for a mixture of SWE-bench, BFCL and RAG
#: lengths, not for a trace.
AGENT_TOTALS = (
    (64, 0.0),
    (128, 0.0),
    (256, 7e-05),
    (512, 0.00407),
    (768, 0.02237),
    (1_024, 0.05757),
    (1_536, 0.15871),
    (2_048, 0.26459),
    (3_072, 0.43163),
    (4_096, 0.53802),
    (6_144, 0.65987),
    (8_192, 0.74042),
    (12_288, 0.85213),
    (16_384, 0.91717),
    (24_576, 0.97282),
    (32_768, 0.99046),
    (49_152, 0.99849),
    (65_536, 1.0),
)

#: Pairs of total tokens and share, as above, which arXiv 2604.09613 states for its
#: Azure input: 80 % up to 2K, 92 % up to 8K and a tail to 64K. The public trace has no
#: such tail, since its longest request has 14,089 tokens. The shape between these
#: points is not published.
HEAVY_TOTALS = (
    (64, 0.02),
    (512, 0.29),
    (1_024, 0.46),
    (2_048, 0.80),
    (8_192, 0.92),
    (65_536, 1.0),
)
