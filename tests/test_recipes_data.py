"""Where recipes get their pictures: every kind of source, broken samples, shards that attack, and order."""

import io
import itertools
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from saccade.recipes import cuts
from saccade.recipes.data import Arrays, Broken, Folder, Skipped, Table, open_source
from saccade.recipes.loading import Loader, once
from saccade.recipes.shards import Shards


def png(level, height=4, width=6):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(file, "png")
    return file.getvalue()


def tar(path, members):
    """An archive of (name, bytes), or (name, a link's target)."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def level_of(sample, rng):
    return (sample.picture[0, 0, 0],)


def read_all(source):
    """(levels of the samples that can be used, {name: reason} of the others)."""
    broken = {}
    skipped = Skipped(broken.__setitem__)
    levels = [int(x) for (batch,) in once(source, source.in_order(), level_of, 2, skipped=skipped) for x in batch]
    assert skipped.count >= len(broken)
    return levels, broken


@pytest.fixture
def folder(tmp_path):
    for name, level in (("cat/b.png", 20), ("cat/deep/a.PNG", 10), ("ant/c.png", 30)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(level))
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def test_folders_are_classes(folder):
    source = open_source(folder)
    assert isinstance(source, Folder) and source.classes == ["ant", "cat"]
    samples = [source.read(job) for job in source.in_order()]
    assert [(s.name, s.label, s.picture[0, 0, 0]) for s in samples] == [
        ("ant/c.png", 0, 30), ("cat/b.png", 1, 20), ("cat/deep/a.PNG", 1, 10),
    ]  # fmt: skip
    (folder / "loose.png").write_bytes(png(1))
    assert open_source(folder).classes is None


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_broken_picture_is_skipped_counted_and_named(folder, damage):
    file = folder / "cat" / "b.png"
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(noise, "png")
    contents = {"cut": noise.getvalue()[:2000], "empty": b"", "text": b"hello"}
    file.write_bytes(contents[damage])
    levels, broken = read_all(Folder(folder))
    assert levels == [30, 10] and list(broken) == [str(file)] and broken[str(file)]


def test_a_table_of_captions(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    text = 'n,caption,image\n1,"one, two",a.png\n2,,a.png\n3,gone,b.png\n4\n5,"two\nlines",a.png\n6,\xff,a.png\n'
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    source = open_source(tmp_path / "t.csv")
    levels, broken = read_all(source)
    assert levels == [1, 1] and source.read(0).caption == "one, two" and source.read(4).caption == "two\nlines"
    assert list(broken) == ["t.csv:3", "t.csv:4", "t.csv:5", "t.csv:8"]
    assert "empty" in broken["t.csv:3"] and "FileNotFound" in broken["t.csv:4"]
    assert "1 columns, expected 3" in broken["t.csv:5"] and "UTF-8" in broken["t.csv:8"]
    with pytest.raises(ValueError, match="columns n, caption, image: which of them is the title"):
        Table(tmp_path / "t.csv", caption_column="title")


def test_a_csv_with_an_open_quote_says_so(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "t.csv").write_text('image,caption\na.png,good\na.png,"never closed\na.png,lost\n')
    levels, broken = read_all(Table(tmp_path / "t.csv"))
    assert levels == [1] and "unexpected end" in broken["t.csv:3"]


def test_json_lines(tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    rows = [{"image": "a.png", "caption": "é"}, {"image": "a.png", "caption": 3}, {"image": "a.png"}, [1], "half {"]
    lines = [json.dumps(row) if row != "half {" else row for row in rows]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, "", json.dumps({"image": None, "caption": "x"})]))
    levels, broken = read_all(open_source(tmp_path / "t.jsonl"))
    assert levels == [7] and list(broken) == [f"t.jsonl:{line}" for line in (2, 3, 4, 5, 7)]


def test_arrays(tmp_path):
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    np.save(tmp_path / "a.npy", images)
    assert open_source(tmp_path / "a.npy").read(2).picture.shape == (2, 2, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=[1, 0, 1], captions=["x", " ", "z"], classes=["n", "p"])
    source = open_source(tmp_path / "a.npz")
    assert source.classes == ["n", "p"] and source.read(0).label == 1 and source.read(2).caption == "z"
    assert read_all(source) == ([0, 2], {"a.npz[1]": "the caption is empty"})
    np.save(tmp_path / "evil.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="no file of plain NumPy arrays"):
        Arrays(tmp_path / "evil.npy")
    np.savez(tmp_path / "b.npz", images=images, labels=[1, 0])
    with pytest.raises(ValueError, match=r"labels \(2,\), expected \(3,\)"):
        Arrays(tmp_path / "b.npz")


def test_what_is_no_source_says_what_would_be(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder or a file \.csv"):
        open_source(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="holds no pictures"):
        open_source(tmp_path)


def test_shards(tmp_path):
    for s in range(3):
        members = [(f"{s}{i}.{kind}", data) for i in range(4) for kind, data in (
            ("txt", f"caption {s}{i}".encode()), ("cls", b"5"), ("png", png(10 * s + i)))]  # fmt: skip
        tar(tmp_path / f"t-{s}.tar", members)
    source = open_source(str(tmp_path / "t-{0..2}.tar"))
    levels, broken = read_all(source)
    assert levels == [10 * s + i for s in range(3) for i in range(4)] and not broken
    sample = source.read(next(iter(source.in_order())))
    assert (sample.label, sample.caption) == (5, "caption 00")
    assert read_all(open_source(tmp_path))[0] == levels
    shares = [itertools.islice(source.jobs((0, 0), 1, rank, 3), 4) for rank in range(3)]
    assert sorted(level_of(source.read(job), None)[0] for share in shares for _, job in share) == levels


def test_a_shard_that_leads_out_of_itself_or_is_cut_loses_those_samples_alone(tmp_path):
    members = [("../../out.png", png(1)), ("/abs.png", png(2)), ("a/../../b.png", png(3)), ("good.png", png(4)),
               ("link.png", "/etc/passwd"), ("link.txt", b"of a link"), ("bad.png", b"not a picture")]  # fmt: skip
    path = str(tar(tmp_path / "a.tar", members))
    whole = tar(tmp_path / "b.tar", [(f"{i}.png", png(i + 5, 40, 40)) for i in range(2)]).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:1100])
    (tmp_path / "c.tar").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    levels, broken = read_all(open_source(tmp_path))
    assert 4 in levels and not {1, 2, 3} & set(levels) and sorted(tmp_path.rglob("*")) == before
    refused = [name for name, reason in broken.items() if "refused" in reason]
    assert refused == [f"{path}/{name}" for name, _ in members[:3]]
    assert any("expected one of jpg" in reason for name, reason in broken.items() if name.endswith("/link"))
    assert f"{path}/bad" in broken and str(tmp_path / "c.tar") in broken
    assert any(name.startswith(str(tmp_path / "b.tar")) for name in broken)


@pytest.mark.parametrize("url", ["pipe:touch owned", "gs://bucket/a.tar", "file:///etc/passwd"])
def test_shards_run_no_commands(url):
    with pytest.raises(ValueError, match="expected a path or an http or https URL"):
        Shards([url])


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8))
    return Arrays(tmp_path / "a.npy")


class Every(Arrays):
    """An array of which every second picture is broken."""

    def read(self, job):
        if job % 2:
            raise Broken(str(job), "odd")
        return super().read(job)


def drawn(sample, rng):
    return sample.picture[0, 0, 0], rng.random()


@pytest.mark.parametrize("kind", [Arrays, Every])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_was(source, kind, workers):
    source, seen = kind(source.path), []
    options = dict(seed=3, skipped=Skipped(lambda *_: None))
    batches = list(itertools.islice(Loader(source, drawn, 3, **options), 8))
    first = Loader(source, drawn, 3, workers=workers, **options)
    for batch in itertools.islice(first, 3):
        seen.append(batch)
    second = Loader(source, drawn, 3, place=first.place, workers=workers, **options)
    seen += itertools.islice(second, 5)
    for mine, true in zip(seen, batches, strict=True):
        for x, y in zip(mine, true, strict=True):
            assert np.array_equal(x, y)
    if kind is Arrays:
        assert sorted(np.concatenate([b[0] for b in batches])[:10]) == list(range(10))


def test_ranks_share_an_epoch(source):
    loaders = [Loader(source, level_of, 5, seed=1, skipped=None, rank=rank, ranks=2) for rank in range(2)]
    assert sorted(np.concatenate([next(iter(loader))[0] for loader in loaders])) == list(range(10))


def test_a_source_without_one_good_sample_ends(source):
    class None_(Arrays):
        def read(self, job):
            raise Broken(str(job), "all are")

    skipped = Skipped(lambda *_: None)
    with pytest.raises(ValueError, match="a whole epoch without one good sample"):
        next(iter(Loader(None_(source.path), level_of, 2, seed=0, skipped=skipped)))
    assert skipped.count >= 10


def test_cuts_by_hand():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 2:6] = 200
    assert (cuts.central(picture, 4) == 200).all()
    assert cuts.stretched(picture, 4).shape == (4, 4, 3) and cuts.stretched(picture, 4)[0, 0, 0] < 100
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    ramp = np.ascontiguousarray(ramp)
    widths = []
    for cut in (cuts.random_square, cuts.random_scaled_square, cuts.random_area):
        spans = [np.ptp(cut(ramp, 16, rng)[8, :, 0].astype(int)) for _ in range(200)]
        widths.append((min(spans), max(spans)))
    # a square of the shorter side shows 100 of 200 levels, less half an output pixel at either end
    (low, high), (least, most), (small, large) = widths
    assert 92 <= low <= high <= 96 and 52 <= least < 60 and 74 <= most <= 84 and small < 50 and large > 110
    for mirror, firsts in ((False, {0}), (True, {0, 1})):
        whole = [cuts.random_area(ramp, 16, rng, least=1, mirror=mirror)[8, :, 0].astype(int) for _ in range(20)]
        assert {int(row[0] > row[-1]) for row in whole} == firsts and all(90 < np.ptp(row) < 100 for row in whole)


def _saved(folder, **columns):
    """A data set of Hugging Face's on a disk, with the features of the columns that are named for theirs."""
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(columns)
    made = made.cast_column(next(iter(columns)), datasets.Image())
    if "label" in columns:
        made = made.cast_column("label", datasets.ClassLabel(names=["ant", "cat"]))
    made.save_to_disk(folder)
    return folder


def test_data_sets_of_hugging_face(tmp_path):
    pictures = [
        {"bytes": png(10), "path": None},
        {"bytes": b"no picture", "path": None},
        {"bytes": png(30), "path": None},
    ]
    source = open_source(_saved(tmp_path / "one", image=pictures, label=[1, 0, 0], text=["a cat", "b", " "]))
    assert source.classes == ["ant", "cat"] and len(source) == 3
    sample = source.read(0)
    assert sample.label == 1 and sample.caption == "a cat" and sample.picture[0, 0, 0] == 10
    levels, broken = read_all(source)
    assert levels == [10] and sorted(broken) == [f"{tmp_path / 'one'}[1]", f"{tmp_path / 'one'}[2]"]
    assert open_source(tmp_path / "one", caption_column="text").read(0).caption == "a cat"
    plain = open_source(_saved(tmp_path / "two", img=pictures[:1]))
    assert plain.classes is None and plain.read(0).caption is None


def test_what_a_data_set_does_not_say_is_asked_for(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = _saved(tmp_path / "one", scan=[{"bytes": png(10), "path": None}])
    with pytest.raises(ValueError, match="has the columns scan: which of them is the image"):
        open_source(folder)
    assert open_source(folder, image_column="scan").read(0).picture[0, 0, 0] == 10
    with pytest.raises(ValueError, match="has the columns scan, not 'words'"):
        open_source(folder, image_column="scan", caption_column="words")
    with pytest.raises(ValueError, match="expected hf:owner/name:split"):
        open_source("hf:owner/name")
    datasets.DatasetDict({"train": datasets.load_from_disk(folder)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="holds the splits train: name the folder of one"):
        open_source(tmp_path / "splits")
