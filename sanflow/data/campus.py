"""Decode the training videos of ShanghaiTech Campus to frames once, because every later step reads images.

training/videos/<scene>_<clip>.avi -> training/frames/<scene>_<clip>/<frame, 8 digits>.jpg, as its loaders expect.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from sanflow.errors import DataError
from sanflow.files import require_free_space, storage_errors

JPEG_QUALITY = 95
FRAME_BYTES = 100_000  # upper estimate for 856 x 480 pixels


def extract_training_frames(root: Path, report: Callable[[int, int | None], None] | None = None) -> int:
    """Decode the training videos that have no frames yet.

    A clip's folder gets its final name when all its frames are there, so an interrupted run continues with the next.

    Arguments:
        root: The data set's top folder.
        report: Called with the clips so far and in all.

    Returns:
        Number of frames written.

    Raises:
        DataError: If PyAV is not installed or a video cannot be decoded.
        StorageError: If there is no space.
    """
    videos = sorted(path for path in (root / "training" / "videos").glob("*.avi") if not path.name.startswith("."))
    missing = [path for path in videos if not _frames_of(path).is_dir()]
    if not missing:
        return 0
    try:
        import av
    except ImportError as error:
        raise DataError(
            "Expected PyAV to decode the training videos of ShanghaiTech Campus, but it is not installed. "
            "Run `pip install -e '.[video]'` in the checkout and start again."
        ) from error
    n_frames = 0
    for number, path in enumerate(missing):
        folder = _frames_of(path)
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with storage_errors(folder), av.open(str(path)) as video:
                stream = video.streams.video[0]
                require_free_space(folder.parent, (stream.frames or 1000) * FRAME_BYTES, f"the frames of {path.name}")
                written = 0
                for frame in video.decode(stream):
                    image = frame.to_image()
                    image.save(temporary / f"{written:08d}.jpg", quality=JPEG_QUALITY, subsampling=0)
                    written += 1
            if not written:
                raise DataError(f"Expected frames in {path}, but it has none. Fetch the data set again.")
            temporary.rename(folder)
        except (av.FFmpegError, IndexError) as error:
            raise DataError(
                f"Expected a readable video in {path}, but got: {error}. Fetch the data set again."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        n_frames += written
        if report:
            report(number + 1, len(missing))
    return n_frames


def _frames_of(video: Path) -> Path:
    return video.parent.parent / "frames" / video.stem
