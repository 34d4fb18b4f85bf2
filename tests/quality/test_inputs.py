"""What is read: video files, folders of pictures, listings; and what is refused, with advice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt.benchmarks.quality.media_set import VideoFiles, match_originals, read_videos
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime.media.listing import read_listing
from consisti2v_rt.runtime.media.read_video import Video, find_videos, read_video
from consisti2v_rt.runtime.media.video_file import save_frames
from consisti2v_rt.runtime.request.settings import parse_settings


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_videos_that_we_write_are_read_back(tmp_path, known, suffix):
    frames = known["real"]
    save_frames(frames, tmp_path / f"a{suffix}", 8)
    read, fps = read_video(tmp_path / f"a{suffix}")
    assert read.shape == frames.shape and read.dtype == np.uint8
    assert fps == pytest.approx(8, rel=0.05)
    assert np.abs(read.astype(float) - frames).mean() < 8
    first, _ = read_video(tmp_path / f"a{suffix}", max_frames=3)
    assert np.array_equal(first, read[:3])


def test_a_still_webp_keeps_its_length(tmp_path, known):
    """The writer joins equal frames into one that lasts as long."""
    frames = np.concatenate([known["real"][:1], np.repeat(known["real"][3:4], 4, axis=0)])
    save_frames(frames, tmp_path / "a.webp", 8)
    assert len(read_video(tmp_path / "a.webp")[0]) == 5


def test_pictures_are_a_video(tmp_path, known):
    (tmp_path / "clip").mkdir()
    save_frames(known["real"], tmp_path / "clip" / "f.png")
    (tmp_path / ".hidden.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video")
    assert find_videos(tmp_path) == [tmp_path / "clip"]
    assert np.array_equal(read_video(tmp_path / "clip")[0], known["real"])


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "a.webp").write_bytes(b"not a picture")
    (tmp_path / "empty").mkdir()
    for name, reason in (("a.mp4", "cannot be read"), ("a.webp", "cannot be read"), ("b.mp4", "does not exist")):
        with pytest.raises(UserError, match=reason):
            read_video(tmp_path / name)
    with pytest.raises(UserError, match="holds no video"):
        find_videos(tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        find_videos(tmp_path / "none")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_webvid_csv(tmp_path):
    touch(tmp_path, "000001_000050/1066674784.mp4", "2.mp4")
    (tmp_path / "webvid.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        '1066674784,https://example.org/a.mp4,PT00H00M10S,000001_000050,"Waves, and a ""red"" boat"\n'
        "2,https://example.org/b.mp4,PT00H00M10S,,A street\n",
        encoding="utf-8",
    )
    rows = read_listing(tmp_path / "webvid.csv")
    assert [(row.path, row.caption) for row in rows] == [
        (tmp_path / "000001_000050/1066674784.mp4", 'Waves, and a "red" boat'),
        (tmp_path / "2.mp4", "A street"),
    ]


def test_a_jsonl_listing_with_a_root(tmp_path):
    touch(tmp_path / "media", "a/1.mp4", "2.png")
    lines = [{"path": "a/1.mp4", "caption": "Bäume"}, {"image": "2.png", "prompt": ""}]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8-sig")
    rows = read_listing(tmp_path / "l.jsonl", tmp_path / "media")
    assert [(row.name, row.caption) for row in rows] == [("a/1.mp4", "Bäume"), ("2.png", "")]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "path,caption\n", "no rows"),
        ("a.csv", "url,caption\nx,y\n", "lacks a file"),
        ("a.csv", "path\n1.mp4\n", "lacks a caption"),
        ("a.csv", "path,caption\n../1.mp4,x\n", "outside"),
        ("a.csv", "path,caption\n/etc/hostname,x\n", "outside"),
        ("a.csv", "path,caption\n2.mp4,x\n", "not in"),
        ("a.csv", "path,caption\n1.mp4,x\n1.mp4,y\n", "twice"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", "{\n", "line 1 is not a JSON object"),
        ("a.txt", "1.mp4 x", "must end in"),
        ("a.csv", "path,caption\n1.mp4,x,y\n", "more fields"),
        ("a.csv", f"path,caption\n{'x' * 5000},x\n", "not in"),
        ("a.jsonl", '{"path": "1.mp4", "caption": {"a": 1}}\n', "line 1 has a caption that is no text"),
        ("a.jsonl", '{"path": ["1.mp4"], "caption": "x"}\n', "line 1 has a path that is no text"),
        ("a.jsonl", '\n{"path": "1.mp4", "caption": "\\ud800"}\n', "line 2 is not a JSON object"),
        ("a.jsonl", '{"path": "1.mp4", "path": "2.mp4", "caption": "x"}\n', "twice"),
    ],
)
def test_bad_listings_are_refused(tmp_path, name, text, reason):
    touch(tmp_path, "1.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=reason):
        read_listing(tmp_path / name)


@pytest.mark.parametrize("name", ["nothing", "nothing.csv", "x" * 300])
def test_a_listing_that_is_not_there_is_not_called_a_wrong_kind(tmp_path, name):
    with pytest.raises(UserError, match=r"does not exist|File name too long"):
        read_listing(tmp_path / name)


def test_a_caption_may_hold_any_line_separator_of_unicode(tmp_path):
    touch(tmp_path, "1.mp4")
    caption = "one\u2028two\u2029three\x85four"
    (tmp_path / "a.jsonl").write_text(json.dumps({"path": "1.mp4", "caption": caption}, ensure_ascii=False) + "\r\n")
    assert [row.caption for row in read_listing(tmp_path / "a.jsonl")] == [caption]
    (tmp_path / "a.csv").write_text(f'path,caption\n\n1.mp4,"{caption}"\n')
    assert [row.caption for row in read_listing(tmp_path / "a.csv")] == [caption]


def test_a_listing_has_a_limit_of_rows(tmp_path):
    names = [f"{number}.mp4" for number in range(4)]
    touch(tmp_path, *names)
    (tmp_path / "a.csv").write_text("path,caption\n" + "".join(f"{name},x\n" for name in names))
    assert len(read_listing(tmp_path / "a.csv", max_rows=4)) == 4
    with pytest.raises(UserError, match=r"more than 3 rows.*--max-rows"):
        read_listing(tmp_path / "a.csv", max_rows=3)


def test_captions_and_originals_are_matched_by_name(tmp_path, known):
    for folder in ("made", "real"):
        (tmp_path / folder).mkdir()
        save_frames(known["real"], tmp_path / folder / "a.mp4")
    np.save(tmp_path / "made" / "a.latents.npy", np.ones((4, 9, 2, 2), np.float32))
    videos, originals = read_videos(tmp_path / "made"), read_videos(tmp_path / "real")
    assert videos[0].latents is not None and originals[0].latents is None
    assert match_originals(videos, originals) == {"a.mp4": originals[0]}
    (tmp_path / "made" / "l.csv").write_text("path,caption\na.mp4,a cat\n")
    assert videos.with_captions(tmp_path / "made" / "l.csv")[0].caption == "a cat"
    assert read_videos(tmp_path / "made" / "l.csv")[0].caption == "a cat"

    with pytest.raises(UserError, match="no original"):
        match_originals((Video("b.mp4", known["real"], 8.0),), originals)
    with pytest.raises(UserError, match="same length and size"):
        match_originals((Video("a.gif", known["real"][:2], 8.0),), originals)
    with pytest.raises(UserError, match="no caption for b"):
        VideoFiles([("b.mp4", tmp_path / "b.mp4", None)]).with_captions(tmp_path / "made" / "l.csv")


def test_frames_are_kept_only_while_there_is_room(tmp_path, known):
    """Nothing is decoded before it is asked for, and what does not fit is decoded again."""
    files = [(name, tmp_path / name, None) for name in ("a.mp4", "b.mp4")]
    for _, path, _ in files:
        save_frames(known["real"], path)
    for cache_bytes, kept in ((2 * known["real"].nbytes, True), (known["real"].nbytes - 1, False)):
        videos = VideoFiles(files, cache_bytes=cache_bytes)
        assert (videos[1] is videos[-1]) is kept
        assert [video.name for video in videos] == [video.name for video in videos[:]] == ["a.mp4", "b.mp4"]
    missing = VideoFiles([("c.mp4", tmp_path / "c.mp4", None)])
    assert len(missing) == 1
    with pytest.raises(UserError, match="does not exist"):
        _ = missing[0]
    with pytest.raises(IndexError):
        _ = missing[1]


def test_settings_are_read_as_json_or_text():
    assert parse_settings(["frame_stride=5", "use_frameinit=false", "frameinit_filter=box", "negative_prompt=a=b"]) == {
        "frame_stride": 5,
        "use_frameinit": False,
        "frameinit_filter": "box",
        "negative_prompt": "a=b",
    }
    with pytest.raises(UserError, match="name=value"):
        parse_settings(["frame_stride"])
