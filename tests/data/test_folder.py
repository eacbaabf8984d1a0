import os

import pytest

from hpctrain.config import schema
from hpctrain.data import folder, listing
from hpctrain.data.locate import locate
from hpctrain.errors import DataError, UsageError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def tree(home):
    """Three training and two test pictures of two classes, all settled long ago."""
    for name in ("train/dog/b.jpg", "train/dog/a.JPEG", "train/cat/z.png", "val/dog/1.jpg", "val/cat/2.jpg"):
        file = home / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (home / "data/train/dog/.hidden.txt").touch()
    (home / "data/train/README").touch()
    age(home / "data")
    return home / "data"


def age(root):
    for directory, _, _ in os.walk(root, topdown=False):
        os.utime(directory, (1e9, 1e9))


def data(tree, **args):
    return schema.Data(dataset="folder", path=str(tree), args=args)


def contents(source):
    return [(content.decode(), source.names[label]) for content, label in map(source.read, range(len(source)))]


def test_samples_stand_in_the_order_of_their_names(tree):
    train, test = folder.open_sources(data(tree), str(tree))
    assert train.names == test.names == ("cat", "dog")
    assert contents(train) == [("train/cat/z.png", "cat"), ("train/dog/a.JPEG", "dog"), ("train/dog/b.jpg", "dog")]
    assert contents(test) == [("val/cat/2.jpg", "cat"), ("val/dog/1.jpg", "dog")]
    assert train.where(1) == f"{tree}/train/dog/a.JPEG"
    for beyond in (-1, 3):
        with pytest.raises(IndexError):
            train.read(beyond)


def test_the_login_node_counts_what_the_ranks_find(tree):
    found = locate(data(tree))
    assert (found.train, found.test, found.path) == (3, 2, str(tree))
    folder.open_sources(data(tree), str(tree), found.digest)


def test_a_tree_that_changed_after_the_submission_is_refused(tree):
    planned = locate(data(tree)).digest
    (tree / "train/dog/a.JPEG").rename(tree / "train/dog/c.JPEG")
    with pytest.raises(DataError) as caught:
        folder.open_sources(data(tree), str(tree), planned)
    assert str(caught.value) == (
        f"{tree}: files were added, removed or renamed after the run was submitted\n  submit it again"
    )


def test_test_labels_are_those_of_training(tree):
    (tree / "train/ant").mkdir()
    (tree / "train/ant/1.jpg").write_text("ant")
    train, test = folder.open_sources(data(tree), str(tree))
    assert train.names == ("ant", "cat", "dog")
    assert contents(test) == [("val/cat/2.jpg", "cat"), ("val/dog/1.jpg", "dog")]
    (tree / "val/bee").mkdir()
    (tree / "val/bee/1.jpg").write_text("bee")
    with pytest.raises(DataError, match="there is a class bee that the training pictures do not have"):
        folder.open_sources(data(tree), str(tree))


def test_without_a_test_directory(tree):
    alone = schema.Data(dataset="folder", path=str(tree / "train"), args={"train": ".", "test": None})
    train, test = folder.open_sources(alone, str(tree / "train"))
    assert (len(train), test) == (3, None)
    with pytest.raises(UsageError, match=r"data\.split\.test=0\.33"):
        locate(alone)


def listed(root):
    return listing.load(root).summary


def test_a_listing_is_made_once(tree, monkeypatch):
    first = listed(tree / "train")
    monkeypatch.setattr(listing, "_scan", None)
    assert listed(tree / "train") == first
    assert listing.known(tree / "train") == first


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new class"])
def test_a_changed_directory_is_listed_anew(tree, change):
    before = listed(tree / "train")
    dog = tree / "train/dog"
    if change == "add":
        (dog / "c.jpg").touch()
    elif change == "remove":
        (dog / "a.JPEG").unlink()
    elif change == "rename":
        (dog / "a.JPEG").rename(dog / "c.jpg")
    else:
        (tree / "train/new").mkdir()
        (tree / "train/new/a.jpg").touch()
    after = listed(tree / "train")
    assert after.digest != before.digest
    assert after.count == 3 + {"add": 1, "remove": -1, "rename": 0, "new class": 1}[change]


def test_a_listing_of_the_last_moment_is_not_kept(tree, home):
    os.utime(tree / "train/dog")
    listed(tree / "train")
    assert not list((home / "cache/hpctrain/listings").glob("[0-9a-f]*"))


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b + b"x\0", lambda b: b"", lambda b: b"{}\n" + b])
def test_a_damaged_cache_is_made_anew(tree, home, damage):
    before = listing.load(tree / "train")
    [file] = (home / "cache/hpctrain/listings").glob("[0-9a-f]*")
    file.write_bytes(damage(file.read_bytes()))
    assert listing.load(tree / "train") == before
    assert listing.known(tree / "train") == before.summary


def test_a_cache_with_other_names_is_made_anew(tree, home):
    before = listing.load(tree / "train")
    [file] = (home / "cache/hpctrain/listings").glob("[0-9a-f]*")
    file.write_bytes(file.read_bytes().replace(b"b.jpg", b"x.jpg"))
    assert listing.load(tree / "train") == before


def test_no_place_for_a_cache_costs_no_more_than_time(tree, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert listed(tree / "train").count == 3


def test_many_files_are_left_to_a_child(tree, monkeypatch):
    monkeypatch.setattr(listing, "SMALL", 2)
    assert listing.known(tree / "train") is None
    found = locate(data(tree))
    assert (found.train, found.test, found.path) == (None, None, str(tree))
    listing.load(tree / "train")
    assert locate(data(tree)).train == 3


def said(tree):
    with pytest.raises(UsageError) as caught:
        locate(data(tree))
    return str(caught.value).replace(str(tree), "DIR")


def test_a_missing_directory_says_how_the_tree_is_meant(tree):
    assert said(tree / "gone").replace("/gone", "") == (
        "DIR/train is no directory\n  data.path lies above the directories data.args.train (default train) and "
        "data.args.test (default val)"
    )


def test_one_class_is_nothing_to_tell_apart(tree):
    (tree / "train/cat/z.png").unlink()
    (tree / "train/cat").rmdir()
    assert said(tree) == (
        "DIR/train has one class, 'dog': there is nothing to tell apart\n"
        "  each class is a directory of its own; see data.args.train"
    )


def test_an_empty_class_is_an_error(tree):
    (tree / "train/emu").mkdir()
    assert said(tree) == "DIR/train/emu: this class has no pictures\n  remove the directory, or fill it"


def test_files_that_would_be_lost_are_errors(tree):
    (tree / "train/dog/c.webp").touch()
    assert said(tree) == (
        "DIR/train/dog/c.webp is no .jpg, .jpeg or .png\n"
        "  convert it, move it away, or name it with a '.' in front, which leaves it out"
    )
    (tree / "train/dog/c.webp").unlink()
    (tree / "train/top.jpg").touch()
    assert (
        said(tree) == "DIR/train/top.jpg lies in no class directory\n  put it into one, or name it with a '.' in front"
    )
    (tree / "train/top.jpg").unlink()
    (tree / "train/dog/more").mkdir()
    assert said(tree) == (
        "DIR/train/dog/more is a directory inside of a class\n  pictures lie as CLASS/NAME.jpg; move it away"
    )
    (tree / "train/dog/more").rmdir()
    os.mkfifo(tree / "train/dog/pipe.jpg")
    assert "DIR/train/dog/pipe.jpg is no regular file" in said(tree)


def test_links_stay_within_the_tree(tree, home):
    (home / "other.jpg").touch()
    (tree / "train/dog/in.jpg").symlink_to("../cat/z.png")
    assert locate(data(tree)).train == 4
    (tree / "train/dog/out.jpg").symlink_to(home / "other.jpg")
    assert said(tree).replace(str(home), "HOME") == (
        "DIR/train/dog/out.jpg is a link out of the directory, to HOME/other.jpg\n"
        "  copy the file, or make a hard link (cp -al); only data.path itself may be a link"
    )
    (tree / "train/dog/out.jpg").unlink()
    (tree / "train/elk").symlink_to(home)
    assert "DIR/train/elk is a link out of the directory" in said(tree)


def test_the_path_itself_may_be_a_link(tree, home):
    (home / "link").symlink_to(tree)
    assert locate(data(home / "link")).train == 3


def test_a_file_that_went_away_is_named(tree):
    train, _ = folder.open_sources(data(tree), str(tree))
    (tree / "train/dog/a.JPEG").unlink()
    with pytest.raises(DataError, match=r"train/dog/a\.JPEG cannot be read: No such file or directory"):
        train.read(1)
    (tree / "train/dog/b.jpg").write_text("")
    with pytest.raises(DataError, match=r"train/dog/b\.jpg has 0 bytes; a picture has 1 to 268435456"):
        train.read(2)
    (tree / "train/cat/z.png").unlink()
    os.mkfifo(tree / "train/cat/z.png")
    with pytest.raises(DataError, match=r"train/cat/z\.png is no regular file"):
        train.read(0)


def test_names_may_be_any_bytes(tree):
    strange = os.fsencode(tree) + b"/train/dog/\xff\n.jpg"
    with open(strange, "wb") as file:  # noqa: PTH123 - of bytes
        file.write(b"strange")
    train, _ = folder.open_sources(data(tree), str(tree))
    assert train.read(3) == (b"strange", 1)
    assert train.where(3).endswith("/dog/\\xff\n.jpg")
