"""Small tokenizer.json files that together use every option, for parity.py."""

import json


def byte_vocab():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b if b in printable else 0x100 + others.index(b)): b for b in range(256)}


def made_up(
    pre_tokenizer=None, normalizer=None, decoder=None, post_processor=None, added=(), vocab=None, merges=(), **model
):
    """The text of a tokenizer.json; by default each byte of UTF-8 is a token."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    base = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    steps = [pre_tokenizer] if pre_tokenizer else []
    if vocab is None:
        vocab = byte_vocab()
        steps.append(byte_level)
        decoder = decoder or byte_level
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": list(added),
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps else None,
            "post_processor": post_processor,
            "decoder": decoder,
            "model": {**base, **model, "vocab": vocab, "merges": list(merges)},
        }
    )


def split(regex, behavior="Removed", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def added_token(content, i, **flags):
    return {
        "id": i,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
        **flags,
    }


def variants(wiki):
    """Made-up tokenizers that together use every option."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(wiki[:400_000].splitlines(), trainers.BpeTrainer(vocab_size=1500, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    words = {"vocab": dict(model["vocab"]), "merges": model["merges"]}
    words["vocab"].update({"<unk>": len(words["vocab"])})
    bytes_too = dict(words["vocab"])
    for b in range(256):
        bytes_too.setdefault(f"<0x{b:02X}>", len(bytes_too))
    some_bytes = {t: i for t, i in bytes_too.items() if t != "<0xE4>"}

    meta = lambda **options: {"type": "Metaspace", "replacement": "\u2581", **options}
    tokens = [
        added_token(c, 256 + i, **flags)
        for i, (c, flags) in enumerate(
            [
                ("<both>", {"lstrip": True, "rstrip": True, "special": True}),
                ("<left>", {"lstrip": True}),
                ("<right>", {"rstrip": True}),
                ("word", {"single_word": True}),
                ("caf\u00e9", {"normalized": True}),
                ("   ", {"normalized": True}),
                ("  ", {}),
                ("<both", {"special": True}),
                ("e\u0301", {"normalized": True, "special": True}),
                ("\u00b2", {"single_word": True, "lstrip": True}),
            ]
        )
    ]
    for scheme in ("always", "first", "never"):
        for splits in (True, False):
            part = meta(prepend_scheme=scheme, split=splits)
            yield f"metaspace-{scheme}-{splits}", made_up(
                part,
                decoder=part,
                unk_token="<unk>",
                fuse_unk=splits,
                added=[added_token("<m>", 5000, lstrip=True)],
                **words,
            )
    yield "byte-fallback", made_up(
        meta(),
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                meta(),
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 2, "stop": 0},
                {"type": "Replace", "pattern": {"Regex": r"\A|t\b|\B\w\B"}, "content": "#"},
                {"type": "Strip", "content": "#", "start": 0, "stop": 0},
            ],
        },
        byte_fallback=True,
        unk_token="<unk>",
        vocab=bytes_too,
        merges=words["merges"],
    )
    for fuse in (True, False):
        yield f"some-byte-fallback-{fuse}", made_up(
            meta(), byte_fallback=True, unk_token="<unk>", fuse_unk=fuse, vocab=some_bytes, merges=words["merges"]
        )
    yield "no-unknown", made_up(meta(), **words)
    yield "strip-each", made_up(
        meta(),
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"Regex": "\u2581+"}, "content": " "},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        unk_token="<unk>",
        **words,
    )
    yield "ignore-merges", made_up(
        meta(),
        ignore_merges=True,
        unk_token="<unk>",
        vocab={**words["vocab"], "\u2581zqzqzq": 9000},
        merges=words["merges"],
    )
    yield "prefix-suffix", made_up(
        unk_token="u",
        continuing_subword_prefix="##",
        end_of_word_suffix="</w>",
        vocab={
            t: i
            for i, t in enumerate(
                ["u", "a", "b", "##a", "##b", "##b</w>", "a</w>", "ab", "ab</w>", "##a</w>", "b</w>", "aba", "abab</w>"]
            )
        },
        merges=["a ##b", "a ##b</w>", "ab ##a", "aba ##b</w>"],
    )
    yield "added", made_up(added=tokens, normalizer={"type": "NFC"})
    yield "added-prefix-space", made_up(
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}, added=tokens
    )
    yield "template", made_up(
        added=[added_token("<a>", 256, special=True), added_token("<z>", 257, special=True)],
        post_processor={
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "<a>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "<z>", "type_id": 0}},
                    ],
                    "pair": [],
                    "special_tokens": {
                        "<a>": {"id": "<a>", "ids": [256, 256], "tokens": ["<a>", "<a>"]},
                        "<z>": {"id": "<z>", "ids": [257], "tokens": ["<z>"]},
                    },
                },
            ],
        },
    )
    yield "roberta", made_up(
        post_processor={
            "type": "RobertaProcessing",
            "sep": ["b", 98],
            "cls": ["a", 97],
            "trim_offsets": True,
            "add_prefix_space": False,
        }
    )
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (True, False):
            yield f"split-{behavior}-{invert}", made_up(
                split(r"\s|[aeiou]{1,2}|x*", behavior, invert),
                ignore_merges=True,
                vocab={**byte_vocab(), "th": 300, "nd": 301, "qu": 302, "st": 303, "\u0120\u0120": 304},
            )
    for individual in (True, False):
        yield f"digits-{individual}", made_up(
            {"type": "Digits", "individual_digits": individual},
            ignore_merges=True,
            vocab=byte_vocab() | {"12": 300, "34": 301, "567": 302},
        )
    yield "replace", made_up(
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"Regex": r"\s+|^a|b$"}, "content": " "},
                {"type": "Replace", "pattern": {"String": "e."}, "content": "$1"},
                {"type": "Prepend", "prepend": "e"},
            ],
        }
    )
    # The patterns of GPT-4, Llama 3 and GPT-4o.
    yield "cl100k", made_up(
        split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
            "MergedWithNext",
        )
    )
    yield "o200k", made_up(
        split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[\p{P}\p{S}]+[\r\n/]*",
            "Removed",
        )
    )
