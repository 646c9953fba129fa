"""llama.cpp's types by name, for scripts that may run without it."""

LLAMA_TYPES = {"Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "Q3_K_M": 12}  # enum llama_ftype
