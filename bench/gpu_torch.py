"""Times torch's dense bf16 products on one GPU, cold: 2 GB of matrices in rotation in a CUDA graph; and its causal
attention. Prints CSV rows."""

import statistics

import torch

ROTATION_BYTES = 2 << 30
SHAPES = [(8192, 8192), (4096, 4096), (11008, 4096), (50280, 768), (3072, 768), (768, 1536), (4096, 11008)]
SHAPES += [(80, 1536), (1536, 48)]
TOKENS = [1, 2, 8, 16, 32, 64, 128]
PREFILL_SHAPES = [(8192, 8192), (4096, 4096), (11008, 4096)]
ATTENTION = [(32, 4, 64), (32, 32, 128), (32, 8, 128)]  # query heads, key-value heads, elements of a head
PREFILL_TOKENS = [256, 512, 1024, 2048, 4096, 8192]


def graph_seconds(work, replays=9):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    times = []
    for i in range(replays + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i > 0:
            times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def time_attention(card, tokens, query_heads, heads, dim, launches=10):
    def random(count):
        return torch.randn(1, count, tokens, dim, device="cuda", dtype=torch.bfloat16)

    q, k, v = random(query_heads), random(heads), random(heads)

    def work():
        for _ in range(launches):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    seconds = graph_seconds(work) / launches
    shape = f"{query_heads}/{heads} heads of {dim},M={tokens}"
    print(f"{card},torch bf16 attention {shape},,{seconds * 1e6:.2f},,,", flush=True)


def main():
    card = torch.cuda.get_device_name()
    for query_heads, heads, dim in ATTENTION:
        time_attention(card, 2048, query_heads, heads, dim)
    for rows, cols in SHAPES:
        count = max(2, min(ROTATION_BYTES // (2 * rows * cols), 512))
        weights = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
        tokens_of_shape = TOKENS if rows >= 3072 else [1]
        if (rows, cols) in PREFILL_SHAPES:
            tokens_of_shape = tokens_of_shape + PREFILL_TOKENS
        for tokens in tokens_of_shape:
            x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
            out = torch.empty(tokens, rows, device="cuda", dtype=torch.bfloat16)
            used = weights if tokens <= 1024 else weights[:4]

            def work():
                for w in used:
                    torch.matmul(x, w.T, out=out)

            seconds = graph_seconds(work) / len(used)
            print(f"{card},torch bf16 {rows}x{cols},M={tokens},bf16 x,{seconds * 1e6:.2f},,,", flush=True)
        del weights


if __name__ == "__main__":
    main()
