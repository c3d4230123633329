"""What `lvd-curate plan` says follows from what was measured, and fits where it says so."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from curate.catalogue.collection import block_size
from curate.cli import main
from curate.execution.session import open_runner
from curate.forecast import calibrate
from curate.forecast.constants import (
    SHIPPED,
    EmbedderCost,
    evaluate,
    fit,
    quantities,
    read_constants,
    write_constants,
)
from curate.forecast.measure import MeasuringExecutor, Taken
from curate.neighbours import levels
from curate.neighbours.cluster import ClusterSettings, count_clusters
from curate.neighbours.levels import find_groups
from curate.neighbours.search import unit
from curate.stage import EngineSettings, Unit

SIZES = (50_000, 200_000, 800_000)
COMPARED = ("images x compared",)


def said(*options):
    result = CliRunner().invoke(main, ["plan", *map(str, options)])
    assert result.exit_code == 0, result.output
    return result.stdout


def planned(*options):
    return json.loads(said("--json", *options))["stages"]


@pytest.mark.parametrize(
    "terms",
    [
        {"images": 2e-5},
        {"images": 1e-5, "images x clusters": 3e-8},
        {"images": 1e-5, "images x root of clusters": 2e-6},
    ],
)
def test_growth_is_found_in_what_grows_so(terms):
    costs = [evaluate(terms, quantities(size)) for size in SIZES]
    found = fit(
        [*map(quantities, SIZES)],
        costs,
        ("images", "images x root of clusters", "images x clusters"),
    )
    for size in (*SIZES, 10**9):
        expected = evaluate(terms, quantities(size))
        assert evaluate(found, quantities(size)) == pytest.approx(expected, rel=1e-3)


def test_what_costs_nothing_has_no_terms():
    assert fit([*map(quantities, SIZES)], [0, 0, 0], ("one", "images")) == {}
    assert fit([*map(quantities, SIZES)], [0, 5, 5], ("one", "images")).keys() <= {"one", "images"}


def test_units_that_grow_are_told_from_those_that_do_not():
    blocks = [size // block_size(size) for size in SIZES]
    many = [Taken(n, n * 2.0, n * 1000, 3 * n, n * n, 4096 * 100) for n in blocks]
    cost = calibrate.fit_units(SIZES, many)
    assert not cost.is_reduce()
    known = quantities(10**9)
    assert evaluate(cost.units, known) == pytest.approx(known["blocks"], rel=0.1)
    assert evaluate(cost.memory, known) == pytest.approx(100 * known["block"], rel=1e-6)
    assert evaluate(cost.gets, known) == pytest.approx(known["blocks"] ** 2, rel=0.1)
    alone = calibrate.fit_units(SIZES, [Taken(1, n / 1e6, n, 2, 1, 60 * n) for n in SIZES])
    assert alone.is_reduce()
    assert evaluate(alone.memory, known) == pytest.approx(60e9, rel=1e-6)
    assert evaluate(alone.puts, known) == pytest.approx(2)


def test_comparisons_grow_as_stages_compare_and_other_maps_as_the_images():
    blocks = [size // block_size(size) for size in SIZES]
    unsteady = [n * cost for n, cost in zip(SIZES, (9e-6, 1.3e-5, 1.1e-5), strict=True)]
    maps = [Taken(n, cpu, n, n, n, n) for n, cpu in zip(blocks, unsteady, strict=True)]
    assert calibrate.fit_units(SIZES, maps).cpu_s.keys() == {"images"}
    known = [quantities(size) for size in (*SIZES, 32_000_000)]
    true = [1e-5 * each["images"] + 2e-9 * each["images x compared"] for each in known]
    maps = [Taken(n, cpu, n, n, n, n) for n, cpu in zip(blocks, true[:3], strict=True)]
    found = calibrate.fit_units(SIZES, maps, COMPARED).cpu_s
    assert evaluate(found, known[3]) == pytest.approx(true[3], rel=1e-3)
    small = (20_000, 40_000, 80_000)
    maps = [Taken(n, size * 1e-5, n, n, n, n) for n, size in zip((5, 8, 12), small, strict=True)]
    assert calibrate.fit_units(small, maps, COMPARED).cpu_s.keys() == {"images x compared"}


def test_what_units_count_is_what_their_cost_grows_with():
    sizes, blocks = (*SIZES, 32_000_000), [n // block_size(n) for n in SIZES]
    counted = [round(1.3 * quantities(size)["images x compared"]) for size in sizes]
    true = [1e-5 * n + 2e-9 * count for n, count in zip(sizes, counted, strict=True)]
    maps = [
        Taken(n, cpu, compared=count) for n, cpu, count in zip(blocks, true, counted, strict=False)
    ]
    found = calibrate.fit_units(SIZES, maps, COMPARED)
    assert found.cpu_s.keys() == {"compared", "images"}
    assert evaluate(found.cpu_s, found.quantities(sizes[3])) == pytest.approx(true[3], rel=1e-3)


def test_a_crawl_that_is_searched_as_a_larger_one_steadies_what_is_foretold():
    sizes, large = SIZES, 16 * SIZES[-1]
    known = [quantities(size) for size in (*sizes, large)]
    true = [1e-5 * each["images"] + 2e-9 * each["images x compared"] for each in known]
    unsteady = [cpu * noise for cpu, noise in zip(true, (0.9, 1.0, 1.2), strict=False)]
    maps = [
        Taken(n // block_size(n), cpu, compared=round(each["images x compared"]))
        for n, cpu, each in zip(sizes, unsteady, known, strict=False)
    ]
    share = sizes[1] / large
    wide = Taken(9, true[3] * share, compared=round(known[3]["images x compared"] * share))
    off = []
    for more in ([], [(quantities(sizes[1], 100), wide)]):
        found = calibrate.fit_units(sizes, maps, COMPARED, more)
        off.append(evaluate(found.cpu_s, found.quantities(large)) / true[3] - 1)
    assert abs(off[1]) < 0.1 < abs(off[0])


def test_what_a_cluster_costs_is_told_from_what_its_images_do():
    cut = count_clusters(16 * SIZES[-1], ClusterSettings())
    known = [*map(quantities, SIZES), quantities(SIZES[1], cut), quantities(16 * SIZES[-1])]
    true = [2e-9 * each["images x ranked"] + 1e-8 * each["made x made"] for each in known]
    maps = [Taken(n // block_size(n), cpu) for n, cpu in zip(SIZES, true, strict=False)]
    more, terms, off = [(known[3], Taken(9, true[3]))], ("images x ranked", "made x made"), []
    for each in (terms[:1], terms):
        found = calibrate.fit_units(SIZES, maps, each, more)
        off.append(evaluate(found.cpu_s, known[4]) / true[4] - 1)
    assert abs(off[1]) < 1e-3 < 0.05 < off[0]


def test_what_the_kept_images_cost_is_told_from_what_all_do():
    sizes, kept = (*SIZES, 4_000_000), [round(27 * n**0.5) for n in SIZES]
    known = [quantities(n) | {"kept": out} for n, out in zip(sizes, (*kept, 480_000), strict=True)]
    every = [quantities(n) | {"kept": float(n)} for n in SIZES]
    cost = {"one": 0.01, "images": 1e-7, "kept": 2.5e-6}
    noise = (1.2, 0.9, 1.05)

    def taken(all_known):
        pairs = zip(all_known, noise, strict=False)
        return [
            Taken(1, evaluate(cost, each) * x, bytes=int(10 * each["kept"])) for each, x in pairs
        ]

    more = list(zip(every, taken(every), strict=True))
    found = calibrate.fit_units(SIZES, taken(known[:3]), more=more, kept=kept)
    assert evaluate(found.cpu_s, known[3]) == pytest.approx(evaluate(cost, known[3]), rel=0.2)
    assert evaluate(found.bytes, known[3]) == pytest.approx(4_800_000, rel=1e-2)
    alone = calibrate.fit_units(SIZES, taken(known[:3]))
    assert evaluate(alone.cpu_s, known[3]) < evaluate(cost, known[3]) / 2


def test_of_repeated_units_each_counts_when_it_took_least():
    first = Taken(2, 7.0, bytes=5, each={"a": 1.0, "b": 6.0})
    second = Taken(2, 6.0, bytes=5, each={"a": 4.0, "b": 2.0})
    [taken] = calibrate._least([{("s", "f"): first}, {("s", "f"): second}]).values()
    assert (taken.units, taken.bytes, taken.cpu_s) == (2, 5, 3.0)


@pytest.mark.parametrize("images", [40_000, 3_000_000])
def test_as_many_centroids_are_compared_as_are_said(images):
    clusters = count_clusters(images, ClusterSettings())
    centroids = unit(np.random.default_rng(0).standard_normal((clusters, 8), np.float32))
    groups = find_groups(centroids, 4, 0)
    compared = clusters if clusters <= levels.SINGLE else 0
    if not compared:
        near = np.argsort(-(centroids[:200] @ groups.middles.T), 1)[:, : levels.LOOKED_INTO]
        sizes = np.bincount(groups.of, minlength=len(groups.middles))
        compared = len(groups.middles) + sizes[near].sum(1).mean()
    said = quantities(images)["images x centroids"] / images
    assert said == pytest.approx(compared, rel=0.35)


def burn(files, before=None, *, out):
    for number in range(files):
        np.save(out / f"{number}.npy", np.zeros(1000))
    if before is not None:
        np.load(before / "0.npy", mmap_mode="r")
        np.load(before / "0.npy")
    held = np.ones(30_000_000, np.uint8)
    for _ in range(20):
        held.sum()
    return {}


def test_what_a_unit_takes_is_noted(tmp_path):
    with open_runner(tmp_path, EngineSettings(), "inline") as runner:
        runner.executor = measuring = MeasuringExecutor(tmp_path)
        with runner.at_work("burning"):
            place = tmp_path / "burning" / "0123"
            runner.run(place, burn, [Unit("one", (2,))])
            units = [Unit(f"two-{n}", (3, place / "one")) for n in range(4)]
            runner.run(place, burn, units)
    taken = measuring.taken["burning", "burn"]
    assert taken.units == 5
    assert taken.puts == 5 + 2 + 4 * 3
    assert taken.gets == 4
    stored = [path.stat().st_size for path in tmp_path.glob("burning/*/*/*")]
    assert taken.bytes == sum(stored)
    assert taken.cpu_s > 0
    assert 20e6 < taken.memory < 100e6


def test_a_machine_is_measured_in_three_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "SEEDS", 20)
    monkeypatch.setattr(calibrate, "COMPARED", (64, 256))
    monkeypatch.setattr(calibrate, "EXPORTED", 20)
    cost = EmbedderCost(dim=96, decode_s=0.001, forward_s=0.002)
    monkeypatch.setattr(calibrate, "measure_embedder", lambda settings, work: (100.0, cost))
    known = calibrate.calibrate(read_constants(SHIPPED), (500, 700, 1000), ("mine", None), tmp_path)
    assert not any(tmp_path.iterdir())
    stages = {"catalogue", "cluster", "dedup", "retrieve", "select", "export", "report"}
    assert stages == set(known.units)
    assert {"sort_facts", "gather_facts"} == set(known.units["export"])
    assert 0 < known.export_s < 0.1
    assert known.embedders["mine"] == cost
    write_constants(known, tmp_path / "constants.json")
    read = read_constants(tmp_path / "constants.json")
    assert read.sizes == [500, 700, 1000]
    told = planned(
        "--images", 1000, "--embedder", "mine", "--constants", tmp_path / "constants.json"
    )
    made = told["cluster"]["stored_bytes"]
    assert 1000 * 384 * 2 * 96 / 384 < made < 1000 * 384 * 2 * 4 * 96 / 384


def test_more_nodes_take_less_time_and_the_same_work():
    one, ten = (planned("--images", 1e7, "--nodes", nodes)["in all"] for nodes in (1, 10))
    assert one["cpu_s"] == pytest.approx(ten["cpu_s"], rel=1e-3)  # each process imports torch
    assert one["stored_bytes"] == ten["stored_bytes"]
    assert ten["alone_s"] == pytest.approx(one["alone_s"])
    parallel = one["seconds"] - one["alone_s"]
    assert ten["seconds"] - ten["alone_s"] == pytest.approx(parallel / 10, rel=0.2)


def test_stages_add_up_and_grow_with_the_images():
    small, large = (planned("--images", images, "--price", 2) for images in (1e6, 1e8))
    for stages in (small, large):
        whole = stages.pop("in all")
        for name in ("cpu_s", "seconds", "puts", "gets", "cost"):
            assert whole[name] == pytest.approx(
                sum(each[name] for each in stages.values()), rel=1e-3
            )
    for stage in small:
        assert large[stage]["cpu_s"] >= 50 * small[stage]["cpu_s"]
    assert small["embed"]["cost"] == pytest.approx(2 * small["embed"]["seconds"] / 3600)


def test_what_goes_out_costs_select_and_export():
    few, many = (planned("--images", 1e7, "--kept", share) for share in (0.01, 0.5))
    for stage in ("select", "export"):
        assert many[stage]["cpu_s"] > 2 * few[stage]["cpu_s"]
    written = 0.49 * 1e7 * read_constants(SHIPPED).export_s
    assert many["export"]["cpu_s"] - few["export"]["cpu_s"] > 1.02 * written  # facts are laid down
    assert many["export"]["stored_bytes"] == pytest.approx(0.5 * 1e7 * 1e5)


def test_what_does_not_fit_is_said_with_what_would():
    asked = ["--images", 1.2e9, "--seeds", 14.2e6, "--nodes", 20, "--cores", 64]
    tight = planned(*asked, "--memory", 16)
    problems = [line for stage in tight.values() for line in stage["problems"]]
    assert any("in one process" in line and "16" in line for line in problems)
    [advice] = [line for line in problems if "engine.workers=" in line][:1]
    workers = int(advice.split("engine.workers=")[1].split(",")[0])
    fewer = planned(*asked[:-2], "--cores", workers // 20, "--memory", 16)
    assert len([line for stage in fewer.values() for line in stage["problems"]]) < len(problems)
    roomy = said("--images", 1e6, "--memory", 512)
    assert "everything fits" in roomy
    assert "every image counts as embedded (embed.once=hash embeds fewer)" in roomy


def test_what_machines_keep_of_a_store_is_said():
    asked = "--images", 1.2e9, "--dim", 384
    known = json.loads(said("--json", *asked))
    stages, store = known["stages"], known["store"]
    vectors, kept = 2 * 384 * 1.2e9, 0.12 * 1.2e9 * 1e5
    assert 2 * vectors < store["node_bytes"] < 3 * vectors  # by block and by cluster
    assert (
        kept
        < store["command_bytes"]
        == sum(stages[name]["stored_bytes"] for name in ("export", "report"))
    )
    assert f"TMPDIR needs {store['node_bytes'] / 1e9:,.1f} GB on every node" in said(*asked)


def test_every_process_that_compares_many_imports_torch(tmp_path):
    known, path = read_constants(SHIPPED), tmp_path / "mine.json"
    before, after = (
        [dedup_of(known.model_copy(update={"torch_s": each}), path, n) for n in (10_000, 1e7)]
        for each in (0.0, 3.0)
    )
    assert after[0] == before[0]
    assert after[1]["cpu_s"] == pytest.approx(before[1]["cpu_s"] + 3 * 2, rel=1e-6)
    assert after[1]["seconds"] == pytest.approx(before[1]["seconds"] + 3, rel=1e-6)


def test_torch_is_held_from_where_it_is_imported(tmp_path):
    known, path = read_constants(SHIPPED), tmp_path / "mine.json"
    network = known.embedders["bundled"]
    both = {"network": network, "none": network.model_copy(update={"torch": False})}
    write_constants(known.model_copy(update={"embedders": both, "torch_bytes": 3e8}), path)
    asked, more = ["--cores", 2, "--constants", path], []
    for images in (10_000, 1e7):
        network, none = (planned(*asked, "--images", images, "--embedder", x) for x in both)
        name = "node_memory_bytes"
        more.append({stage: network[stage][name] - none[stage][name] for stage in none})
    assert set(more[0].values()) <= {3e8, 6e8}  # of a reduce that runs alone, of two processes
    most = {"catalogue", "in all"}  # the stage that needs most tells the memory of all
    assert {stage for stage, held in more[1].items() if held} == {"embed", "cluster"} | most


def dedup_of(constants, path, images):
    write_constants(constants, path)
    return planned("--images", images, "--cores", 2, "--constants", path)["dedup"]


def test_cards_take_the_forward_pass():
    rate = ["--gpus", 8, "--gpu-rate", 5000]
    cards, none = planned("--images", 1e8, *rate)["embed"], planned("--images", 1e8)["embed"]
    assert cards["gpu_s"] == pytest.approx(1e8 / 5000)
    assert cards["cpu_s"] < none["cpu_s"]


def test_seeds_past_the_limit_are_searched_in_clusters():
    at, past, far = (
        planned("--images", 1e8, "--seeds", seeds)["retrieve"] for seeds in (1e6, 1e6 + 1, 1.4e7)
    )
    assert past["cpu_s"] < at["cpu_s"] / 2
    assert far["stored_bytes"] - past["stored_bytes"] > 13e6 * 384 * 2


def test_unit_vectors_of_a_large_seed_are_made_for_each_block_of_images(tmp_path):
    known, found = read_constants(SHIPPED), []
    for each in (0.0, 1e-6):
        path = tmp_path / "mine.json"
        write_constants(known.model_copy(update={"unit_s": each}), path)
        asked = "--images", 153_600, "--dim", 384, "--seeds", 2e6, "--constants", path
        found.append(planned(*asked)["retrieve"]["cpu_s"])
    assert found[1] - found[0] == pytest.approx(10 * 2e6 * 1e-6, rel=1e-3)


def test_a_seed_is_cut_into_the_root_of_its_images():
    assert quantities(14e6, 3_742)["images x centroids"] < quantities(14e6)["images x centroids"]
    assert quantities(4e4, 200) == quantities(4e4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--images", "many"], "'many'"),
        (["--images", 0], "1.2e9"),
        (["--images", 1e6, "--embedder", "dinov2-x"], "dinov2-s"),
        (["--images", 1e6, "--constants", "nowhere.json"], "nowhere.json"),
        (["--images", 1e6, "--kept", 2], "--kept"),
        (["--images", 1e6, "--nodes", 0], "--nodes"),
        (["--images", 1e6, "--calibrate", "--sizes", "1000,2000"], "three sizes"),
    ],
)
def test_a_wrong_value_is_one_line(options, named):
    result = CliRunner().invoke(main, ["plan", *map(str, options)])
    assert result.exit_code == 2
    [line] = [
        line for line in result.output.splitlines() if "rror" in line or "lvd-curate:" in line
    ]
    assert named in line


def test_a_file_that_holds_no_constants_is_named(tmp_path):
    (tmp_path / "mine.json").write_text('{"machine": 3}')
    result = CliRunner().invoke(
        main, ["plan", "--images", "9", "--constants", str(tmp_path / "mine.json")]
    )
    assert result.exit_code == 2
    assert "mine.json" in result.output
    assert "--calibrate" in result.output
