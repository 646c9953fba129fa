"""`python -m helix_substrate`: compress, verify, inspect and decompress model folders. Needs no torch."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
import threading

from . import _core


class _LostOutput(Exception):
    """What was to be printed cannot be: `error` says why."""

    def __init__(self, error: OSError):
        super().__init__(error)
        self.error = error


def _say(text: str) -> None:
    """Prints what the command is called for. Raises _LostOutput where that cannot be written."""
    if sys.stdout is None:
        raise _LostOutput(OSError(errno.EBADF, os.strerror(errno.EBADF)))
    try:
        print(text, flush=True)
    except OSError as error:
        raise _LostOutput(error) from None


def _complain(text: str) -> None:
    """A message, which is lost where there is nobody to read it."""
    if sys.stderr is not None:  # or `print` would take the standard output
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _forget(stream) -> None:
    """What could not be written is dropped, lest Python tries it again at its end, complains and ends with 120."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end_messages() -> None:
    """Some releases of Python keep what could not be written: messages of ours, and those of loggers."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        _forget(sys.stderr)


def _progress(quiet: bool):
    if quiet or not _is_watched():
        return None

    def show(tensor: str, done: int, total: int) -> None:
        share = 100 * done / total if total else 100
        print(f"\r{share:5.1f} %  {tensor[:60]:60}", end="\n" if not tensor else "", file=sys.stderr, flush=True)

    return show


def _role_bits(text: str) -> tuple[str, int]:
    role, _, bits = text.partition("=")
    if not role or not bits.isascii() or not bits.isdigit():
        raise argparse.ArgumentTypeError(f"expected ROLE=N, such as embedding=8, not {text!r}")
    return role, int(bits)


def _new_folder(text: str) -> str:
    if text == "-":  # elsewhere a standard stream
        raise argparse.ArgumentTypeError("expected a folder to create (./- makes one of that name), found -")
    return text


def _bits_by_role(pairs: list[tuple[str, int]]) -> dict[str, int]:
    by_role = dict(pairs)
    if len(by_role) < len(pairs):
        raise ValueError("--bits-for names a role twice")
    return by_role


def _low_rank(text: str) -> int | None:
    if text in ("auto", "off"):
        return None if text == "auto" else 0
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected auto, off or a rank, not {text!r}")
    return int(text)


class _Once(argparse.Action):
    """Takes an option that has one value; of two, one would be left out in silence."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = namespace.__dict__.setdefault("_given", set())
        if option_string is not None and self.dest in given:
            parser.error(f"argument {option_string}: given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register("action", None, _Once)

    def print_help(self, file=None):
        _say(self.format_help().rstrip("\n"))

    def error(self, message):
        _complain(f"{self.format_usage()}{self.prog}: error: {message}")
        raise SystemExit(2)


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        _say(_core.version())
        parser.exit()


@contextlib.contextmanager
def _signals_as_exits():
    """SIGTERM and SIGHUP end the work as ^C does: nothing is left of what was being written."""

    def stop(number, frame):
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup has one ignored
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _compress(arguments) -> int:
    receipt = _core.compress(
        arguments.source, arguments.destination, sidecar_fraction=arguments.sidecar_fraction,
        low_rank=arguments.low_rank, keep=arguments.keep, only=arguments.only, threads=arguments.threads,
        force=arguments.force, progress=_progress(arguments.quiet), profile=arguments.profile, bits=arguments.bits,
        group=arguments.group, bits_for=_bits_by_role(arguments.bits_for),
    )  # fmt: skip
    totals = receipt["totals"]
    _say(
        f"{totals['tensors_compressed']} tensors compressed, {totals['tensors_exact']} exact; "
        f"{totals['source_bytes'] / 1e6:.1f} MB -> {totals['stored_bytes'] / 1e6:.1f} MB, "
        f"{totals['bits_per_weight']:.2f} bits per weight"
    )
    return 0


def _verify(arguments) -> int:
    result = _core.verify(arguments.folder, arguments.source, _progress(arguments.quiet))
    for problem in result["problems"]:
        _complain(problem)
    _say(
        f"{'ok' if result['ok'] else 'NOT ok'}: {result['tensors']} tensors, {result['compressed']} compressed, "
        f"{result['hashes_checked']} hashes and {result['fidelities_checked']} fidelities checked"
    )
    return 0 if result["ok"] else 1


def _inspect(arguments) -> int:
    _say(json.dumps(_core.inspect(arguments.folder), indent=2))
    return 0


def _decompress(arguments) -> int:
    _core.decompress(arguments.source, arguments.destination, arguments.dtype, _progress(arguments.quiet))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m helix_substrate", description=__doc__)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    verbs = parser.add_subparsers(dest="verb", required=True)

    verb = verbs.add_parser("compress", help="compress a model folder into a new one")
    verb.add_argument("source")
    verb.add_argument("destination", type=_new_folder)
    verb.add_argument("--profile", help=f"how matrices are stored: {', '.join(_core.profiles())}")
    verb.add_argument("--bits", type=int, default=0, metavar="N", help="bits of an index, in place of a profile")
    verb.add_argument("--group", type=int, default=0, metavar="N", help="adjacent weights that share a scale")
    verb.add_argument(
        "--bits-for", action="append", default=[], type=_role_bits, metavar="ROLE=N",
        help="other bits for embedding, projection or head",
    )  # fmt: skip
    verb.add_argument(
        "--sidecar", "--sidecar-fraction", dest="sidecar_fraction", type=float, default=0.001, metavar="SHARE",
        help="share of weights kept exactly (0.001)",
    )  # fmt: skip
    verb.add_argument(
        "--low-rank", type=_low_rank, metavar="N", help="rank of a term kept apart, auto (where it pays) or off"
    )
    verb.add_argument("--keep", action="append", default=[], metavar="PATTERN", help="tensors to store exactly")
    verb.add_argument("--only", action="append", default=[], metavar="PATTERN", help="compress nothing but these")
    verb.add_argument("--threads", type=int, default=0)
    verb.add_argument(
        "--force", action="store_true", help="replace an earlier compression's folder, if nothing was added to it"
    )
    verb.set_defaults(run=_compress)

    verb = verbs.add_parser("verify", help="check a model folder")
    verb.add_argument("folder")
    verb.add_argument("--source", help="the dense folder it was made from")
    verb.set_defaults(run=_verify)

    verb = verbs.add_parser("inspect", help="list what a folder stores, as JSON")
    verb.add_argument("folder")
    verb.set_defaults(run=_inspect)

    verb = verbs.add_parser("decompress", help="write a compressed folder as a dense one")
    verb.add_argument("source")
    verb.add_argument("destination", type=_new_folder)
    verb.add_argument("--dtype", type=str.upper, choices=("F32", "F16", "BF16"), default="F32")
    verb.set_defaults(run=_decompress)

    for verb in verbs.choices.values():
        verb.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    return parser


def main(argv=None) -> int:
    try:
        arguments = _parser().parse_args(argv)
        with _signals_as_exits():
            return arguments.run(arguments)
    except _LostOutput as lost:
        _forget(sys.stdout)
        if isinstance(lost.error, BrokenPipeError):  # who has read enough wants no message
            return 128 + signal.SIGPIPE
        _complain(f"error: cannot write to standard output: {lost.error.strerror}")
        return 1
    except (_core.HxqError, ValueError, OSError, MemoryError) as error:
        _complain(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _complain("\ninterrupted" if _is_watched() else "interrupted")
        return 130
    finally:
        _end_messages()


if __name__ == "__main__":
    sys.exit(main())
