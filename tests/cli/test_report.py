"""`report`: the figures in its page against numpy and the other verbs, the page in a browser, and what it refuses."""

import json
import re
import shutil
import subprocess
import sys

import numpy
import pytest
from conftest import MODEL, ROOT, TEXT
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors_file import SafetensorsFile
from test_bad_input import MODULE, NAN, WEIGHT, damage, put

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "golden")]
from browser import open_browser  # noqa: E402
from expect import GROUPED, grouped_weights  # noqa: E402

BINS = 120
EMBEDDING = "backbone.embeddings.weight"
SCORING = ("--text", TEXT, "--window", 64, "--windows", 3)


def figures(page):
    """The JSON in the page."""
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.S)
    assert "<" not in text
    return json.loads(text)


def array(stored, key):
    """A tensor of a file; BF16, which numpy lacks, as floats."""
    dtypes = {"F32": "f4", "F16": "f2", "BF16": "u2", "U8": "u1", "I64": "i8"}
    entry = stored.header[key]
    values = numpy.frombuffer(stored.bytes_of(key), dtypes[entry["dtype"]]).reshape(entry["shape"])
    return (values.astype("u4") << 16).view("f4") if entry["dtype"] == "BF16" else values


def stored_tensors(folder):
    """The tensors of a folder, and how many bytes each has there."""
    stored = SafetensorsFile(folder / "model.safetensors")
    keys = [key for key in stored.header if key != "__metadata__"]
    return {key: array(stored, key) for key in keys}, {key: len(stored.bytes_of(key)) for key in keys}


def decoded(stored, module):
    """A matrix of the published format, by its definition."""
    weights = stored[module + ".codebook"][stored[module + ".indices"]].astype(numpy.float64)
    if module + ".sidecar_positions" in stored:
        weights.ravel()[stored[module + ".sidecar_positions"]] = stored[module + ".sidecar_values"]
    if module + ".svd_U" in stored:
        u, s, vt = (stored[f"{module}.svd_{part}"].astype(numpy.float32) for part in ("U", "s", "Vt"))
        weights += (u * s).astype(numpy.float64) @ vt
    return weights.astype(numpy.float32)


def check_histogram(histogram, weights):
    """By the definition of the bins. (numpy.histogram puts weights that are just at an edge elsewhere.)"""
    w = weights.astype(numpy.float64).ravel()
    low, high = max(w.min(), w.mean() - 6 * w.std()), min(w.max(), w.mean() + 6 * w.std())
    assert (histogram["low"], histogram["high"]) == pytest.approx((low, high), rel=1e-9)
    low, high = histogram["low"], histogram["high"]
    inner = w[(w >= low) & (w <= high)]
    bins = ((inner - low) * (BINS / (high - low) if high > low else 0)).astype(int).clip(max=BINS - 1)
    assert histogram["counts"] == numpy.bincount(bins, minlength=BINS).tolist()
    assert (histogram["below"], histogram["above"], histogram["not_finite"]) == ((w < low).sum(), (w > high).sum(), 0)


@pytest.fixture(scope="module")
def page(hxq, compressed, tmp_path_factory):
    """A page with all there is, of a folder whose name is markup."""
    folder = tmp_path_factory.mktemp("report") / "<i>model"
    shutil.copytree(compressed, folder)
    done = hxq("report", folder, "--source", MODEL, *SCORING)
    assert done.code == 0 and str(folder) + ".html: 122 tensors" in done.out, done.err
    return folder.with_name("<i>model.html")


def test_it_says_what_the_other_verbs_say(hxq, compressed, page):
    data = figures(page)
    assert data["name"] == "<i>model" and data["text"] == TEXT.name
    assert data["inspection"] == hxq("inspect", compressed, "--json").json()
    assert data["verification"] == hxq("verify", compressed, "--source", MODEL, "--json").json()
    assert data["scores"] == hxq("perplexity", compressed, *SCORING, "--against", MODEL, "--json").json()
    windows = data["scores"]["windows"]
    assert sum(w["kl"] for w in windows) / sum(w["scored"] for w in windows) == pytest.approx(data["scores"]["mean_kl"])


def test_its_figures_are_those_of_the_stored_bytes(compressed, page):
    data = figures(page)
    (stored, sizes), (source, _) = stored_tensors(compressed), stored_tensors(MODEL)
    distances = {tensor["name"]: tensor["snr_db"] for tensor in data["verification"]["fidelities"]}
    histograms = {histogram["tensor"]: histogram for histogram in data["histograms"]}
    roles = {"embeddings": "embedding", "proj.weight": "projection", "norm": "norm", "conv1d": "conv"}
    assert {tensor["name"] for tensor in data["inspection"]["tensors"]} == set(source) == set(histograms)
    compressed_ones = 0
    for tensor in data["inspection"]["tensors"]:
        name, module = tensor["name"], tensor["name"].removesuffix(".weight")
        assert tensor["role"] == next((role for part, role in roles.items() if part in name), "ssm_parameter")
        keys = [name] if name in stored else [key for key in stored if key.startswith(module + ".") and key not in source]
        assert tensor["stored_bytes"] == sum(sizes[key] for key in keys)
        check_histogram(histograms[name], source[name])
        assert histograms[name]["of_source"]
        if name in stored:
            assert histograms[name]["levels"] == []
            continue
        compressed_ones += 1
        assert numpy.float32(histograms[name]["levels"]).tolist() == numpy.sort(stored[module + ".codebook"]).tolist()
        weights = source[name].astype(numpy.float64)
        error = ((weights - decoded(stored, module)) ** 2).sum()
        assert distances[name] == pytest.approx(10 * numpy.log10((weights**2).sum() / error), rel=1e-6)
    assert compressed_ones == len(distances) == 49


def test_without_a_source_the_stored_weights_are_shown(hxq, tmp_path):
    """Of a folder with groups: levels are those at the median scale."""
    assert hxq("compress", MODEL, tmp_path / "g5", "--profile", "g5", "--only", EMBEDDING).code == 0
    assert hxq("report", tmp_path / "g5", "-o", tmp_path / "page", "--threads", 1).code == 0
    data = figures(tmp_path / "page")
    assert data["verification"] is None and data["scores"] is None
    assert [tensor["snr_db"] > 27 for tensor in data["inspection"]["tensors"] if tensor["codec"] != "exact"] == [True]
    (histogram,) = [histogram for histogram in data["histograms"] if histogram["tensor"] == EMBEDDING]
    assert not histogram["of_source"]
    with safe_open(tmp_path / "g5" / "model.safetensors", "numpy") as stored:
        part = {name: stored.get_tensor(f"backbone.embeddings.grouped_{name}") for name in GROUPED}
        check_histogram(histogram, grouped_weights(stored, "backbone.embeddings"))
    scales = numpy.sort(numpy.abs(part["scale_levels"][part["scales"]]).ravel())
    expected = numpy.sort(part["levels"] * scales[(scales.size - 1) // 2])
    assert numpy.float32(histogram["levels"]).tolist() == expected.tolist()
    assert hxq("report", tmp_path / "g5", *SCORING).code == 0
    scores = figures(tmp_path / "g5.html")["scores"]
    assert scores == hxq("perplexity", tmp_path / "g5", *SCORING, "--json").json() and "kl" not in scores["windows"][0]


def test_weights_that_are_not_finite_and_all_alike(hxq, tmp_path):
    odd = numpy.array([numpy.nan, numpy.inf, 1, 2, 3], numpy.float32)
    nearly = numpy.ones(1000, numpy.float32)
    nearly[500] = numpy.nextafter(numpy.float32(1), numpy.float32(2))
    save_file({"odd": odd, "nearly": nearly, "same": numpy.full((2, 3), 7, numpy.float16),
               "none": numpy.zeros((0, 4), numpy.float32), "whole": numpy.arange(3)},
              tmp_path / "a.safetensors")  # fmt: skip
    assert hxq("report", tmp_path / "a.safetensors").code == 0
    found = {histogram.pop("tensor"): histogram for histogram in figures(tmp_path / "a.safetensors.html")["histograms"]}
    assert set(found) == {"odd", "nearly", "same", "none"}
    assert (found["odd"]["not_finite"], found["odd"]["low"], found["odd"]["high"]) == (2, 1, 3)
    assert [i for i, count in enumerate(found["odd"]["counts"]) if count] == [0, 60, 119]
    check_histogram(found["nearly"], nearly)
    assert found["nearly"]["counts"] == [999] + [0] * (BINS - 1) and found["nearly"]["above"] == 1
    assert found["same"]["counts"] == [6] + [0] * (BINS - 1) and sum(found["none"]["counts"]) == 0


def column(browser, title):
    """The cells of a column of the tensors' table, as they stand there."""
    titles = browser.run("return [...document.querySelectorAll('#tensors th')].map((title) => title.textContent)")
    return browser.run(
        "return [...document.querySelectorAll('#tensors tbody tr')]"
        f".map((row) => row.cells[{titles.index(title)}].textContent)"
    )


def click_title(browser, title):
    browser.run(
        "[...document.querySelectorAll('#tensors th button')]"
        f".find((button) => button.textContent === '{title}').click()"
    )


def test_the_page_in_a_browser(page):
    data = figures(page)
    with open_browser() as browser:
        browser.ask("POST", "/url", {"url": page.as_uri()})
        assert browser.run("return document.querySelector('#name').textContent") == "<i>model"
        names = [tensor["name"] for tensor in data["inspection"]["tensors"]]
        assert column(browser, "tensor") == names
        measured = {tensor["name"]: tensor["snr_db"] for tensor in data["verification"]["fidelities"]}
        assert column(browser, "SNR dB") == [f"{measured[name]:.2f}" if name in measured else "" for name in names]

        # By number, upwards and downwards, with tensors that have none last; then by text.
        by_snr = sorted(measured, key=measured.get)
        click_title(browser, "SNR dB")
        assert column(browser, "tensor")[: len(by_snr)] == by_snr
        click_title(browser, "SNR dB")
        assert column(browser, "tensor")[: len(by_snr)] == by_snr[::-1]
        click_title(browser, "bits/weight")
        bits = [float(text) for text in column(browser, "bits/weight")]
        assert bits == sorted(bits) and bits[0] < 8.2 and bits[-1] == 32
        click_title(browser, "tensor")
        parts = {name: [int(p) if p.isdigit() else p.lower() for p in re.split(r"(\d+)", name)] for name in names}
        assert column(browser, "tensor") == sorted(names, key=parts.get)

        by_role = browser.run("return [...document.querySelectorAll('#roles tbody tr')].map((row) => "
                              "[row.cells[0].textContent, row.cells[3].textContent])")  # fmt: skip
        sums = {}
        for tensor in data["inspection"]["tensors"]:
            sums[tensor["role"]] = sums.get(tensor["role"], 0) + tensor["stored_bytes"]
        assert by_role == [[role, f"{size:,}"] for role, size in sorted(sums.items(), key=lambda item: -item[1])]

        # The first compressed tensor is shown, then the one that is clicked on.
        count = "return document.querySelectorAll('#histogram {}').length"
        assert browser.run(count.format("rect")) == BINS and browser.run(count.format(".level")) == 256
        browser.run("document.querySelectorAll('#tensors tbody tr')[1].click()")
        assert browser.run("return document.querySelector('#chosen').textContent") == "backbone.layers.0.mixer.A_log"
        assert browser.run(count.format("rect")) == BINS and browser.run(count.format(".level")) == 0
        heights = "return [...document.querySelectorAll('#histogram rect')].map((bar) => Number(bar.getAttribute('height')))"
        plain = browser.run(heights)
        browser.click("#logarithmic")
        assert numpy.count_nonzero(browser.run(heights)) == numpy.count_nonzero(plain) and browser.run(heights) != plain
        assert browser.run("return document.querySelectorAll('#windows rect').length") == 3

        # Nothing but the page itself was asked for, and the browser would not let it be.
        events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
        asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        assert asked == [page.as_uri()]
        assert browser.log("browser") == []
        browser.run("fetch('http://127.0.0.1:9/').catch((error) => { window.refused = String(error); })")
        browser.wait_for("window.refused !== undefined")
        assert "Content Security Policy" in str(browser.log("browser"))


def test_a_tensor_that_is_reproduced_exactly_is_said_to_be(hxq, tmp_path):
    """And comes after all that have an SNR."""
    dense, random = tmp_path / "dense", numpy.random.default_rng(1)
    dense.mkdir()
    few = numpy.arange(64 * 64, dtype=numpy.float32).reshape(64, 64) % 4
    many = random.standard_normal((64, 64), numpy.float32)
    save_file({"few.weight": few, "many.weight": many}, dense / "model.safetensors")
    assert hxq("compress", dense, tmp_path / "small").code == 0
    assert hxq("report", tmp_path / "small", "--source", dense).code == 0
    page = tmp_path / "small.html"
    measured = {tensor["name"]: tensor["snr_db"] for tensor in figures(page)["verification"]["fidelities"]}
    assert measured["few.weight"] is None
    with open_browser() as browser:
        browser.ask("POST", "/url", {"url": page.as_uri()})
        click_title(browser, "SNR dB")
        assert column(browser, "SNR dB") == [f"{measured['many.weight']:.2f}", "exact"]


def test_what_is_there_is_left_as_it_is(hxq, compressed, page, tmp_path):
    target = tmp_path / "page.html"
    target.write_text("mine")
    hxq("report", compressed, "-o", target).fails_with(target, "exists already")
    hxq("report", compressed, "-o", target, "--force").fails_with(target, "no page of a report")
    hxq("report", compressed, "-o", tmp_path, "--force").fails_with(tmp_path, "no page of a report")
    assert target.read_text() == "mine"
    target.write_bytes(page.read_bytes())
    hxq("report", compressed, "-o", target).fails_with(target, "exists already")
    assert hxq("report", compressed, "-o", target, "--force").code == 0
    assert figures(target)["verification"] is None
    assert list(tmp_path.iterdir()) == [target]


def test_to_the_standard_output(hxq, compressed, tmp_path):
    """As "-" means the standard input elsewhere; "./-" is a file."""
    done = hxq("report", compressed, "-o", "-", cwd=tmp_path)
    assert done.code == 0 and not list(tmp_path.iterdir())
    assert hxq("report", compressed, "-o", "./-", cwd=tmp_path).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["-"]
    assert done.out == (tmp_path / "-").read_text()
    hxq("report", compressed, "-o", "-", "--force").fails_with("--force", "standard output", code=2)
    with open("/dev/full", "wb") as full:
        done = subprocess.run([hxq.command, "report", compressed, "-o", "-"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"No space left" in done.stderr


def test_bad_input_leaves_nothing(hxq, compressed, compressed_copy, model_copy, tmp_path):
    out = tmp_path / "page.html"
    hxq("report", tmp_path / "none", "-o", out).fails_with(tmp_path / "none")
    hxq("report", compressed, "-o", tmp_path / "none" / "a", *SCORING).fails_with(f"{tmp_path}/none/a: cannot create: No")
    hxq("report", compressed, "-o", out, "--source", compressed).fails_with(compressed, "is itself compressed")
    hxq("report", compressed, "-o", out, "--text", tmp_path / "none").fails_with(tmp_path / "none")
    for option in (["--windows", 1], ["--window", 9], ["--stride", 9], ["--precision", "exact"], ["--kv-cache", "f16"],
                   ["--device", "cpu"]):
        hxq("report", compressed, "-o", out, *option).fails_with(option[0], "--text", code=2)
    damage(model_copy, WEIGHT, put(0, b"\x00\x00\x80\x3f"))
    hxq("report", compressed, "-o", out, "--source", model_copy).fails_with(WEIGHT, "SHA-256")
    # The text is looked at first: verification takes long.
    text = tmp_path / "none"
    hxq("report", compressed, "-o", out, "--source", model_copy, "--text", text).fails_with(text, "cannot read")
    damage(compressed_copy, MODULE + ".codebook", put(8, NAN))
    hxq("report", compressed_copy, "-o", out).fails_with(MODULE + ".codebook", "expected a finite number")
    assert not out.exists() and not list(tmp_path.glob("page*"))
