"""Small copies of every registered data set, in the layout that its cited loader documents. No image is downloaded."""

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 20


def image(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE)) -> None:
    """A random image of (width, height) `size`; another seed gives another image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)


def mask(
    path: Path,
    size: tuple[int, int] = (SIDE, SIDE),
    box: tuple[int, int, int, int] = (2, 3, 7, 9),
    value: int = 255,
) -> None:
    """A mask with one rectangle (left, top, right, bottom), 5 x 6 = 30 pixels unless told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = value
    Image.fromarray(pixels).save(path)


def mvtec(root: Path, category: str = "bottle", good: str = "good", bad: str = "broken", suffix: str = "png") -> None:
    """3 training, 2 good and 2 defective test images."""
    top = root / category
    for i in range(3):
        image(top / "train" / good / f"{i:03d}.{suffix}", seed=i)
    for i in range(2):
        image(top / "test" / good / f"{i:03d}.{suffix}", seed=10 + i)
        image(top / "test" / bad / f"{i:03d}.{suffix}", seed=20 + i)
        mask(top / "ground_truth" / bad / f"{i:03d}_mask.png")


def mpdd(root: Path) -> None:
    mvtec(root / "MPDD", "bracket_black", bad="scratches")


def btad(root: Path) -> None:
    """ok and ko; images .bmp, masks .png of the same name, as in category 01."""
    top = root / "BTech_Dataset_transformed"
    mvtec(top, "01", good="ok", bad="ko", suffix="bmp")
    for path in (top / "01" / "ground_truth" / "ko").glob("*_mask.png"):
        path.rename(path.with_name(path.name.replace("_mask", "")))


def visa(root: Path) -> None:
    """Images by their state, and the split in a table; masks hold small class numbers."""
    lines = ["object,split,label,image,mask"]
    for i in range(5):
        name = f"candle/Data/Images/Normal/{i:04d}.JPG"
        image(root / name, seed=i)
        lines.append(f"candle,{'train' if i < 3 else 'test'},normal,{name},")
    for i in range(2):
        name, mask_name = f"candle/Data/Images/Anomaly/{i:03d}.JPG", f"candle/Data/Masks/Anomaly/{i:03d}.png"
        image(root / name, seed=20 + i)
        mask(root / mask_name)
        with Image.open(root / mask_name) as full:
            small = np.asarray(full) // 255 * (i + 1)
        Image.fromarray(small.astype(np.uint8)).save(root / mask_name)
        lines.append(f"candle,test,anomaly,{name},{mask_name}")
    lines.append("capsules,train,normal,capsules/Data/Images/Normal/000.JPG,")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")


def magnetic_tile(root: Path) -> None:
    """MT_<type>/Imgs with a mask beside every image, black for MT_Free; sizes differ."""
    top = root / "Magnetic-tile-defect-datasets.-master"
    for i in range(5):
        image(top / "MT_Free" / "Imgs" / f"exp1_num_{i}.jpg", seed=i, mode="L", size=(20, 24 + i))
        mask(top / "MT_Free" / "Imgs" / f"exp1_num_{i}.png", size=(20, 24 + i), box=(0, 0, 0, 0))
    for i, kind in enumerate(["Blowhole", "Crack"]):
        image(top / f"MT_{kind}" / "Imgs" / f"exp2_num_{i}.jpg", seed=20 + i, mode="L")
        mask(top / f"MT_{kind}" / "Imgs" / f"exp2_num_{i}.png")
    (top / "README.md").write_text("MTD")


def kolektor_sdd(root: Path) -> None:
    """Five images without and two with a marked defect."""
    for i in range(7):
        folder = root / f"kos{i % 3 + 1:02d}"
        image(folder / f"Part{i}.jpg", seed=i, mode="L")
        mask(folder / f"Part{i}_label.bmp", box=(2, 3, 7, 9) if i >= 5 else (0, 0, 0, 0))


def mvtec_loco(root: Path) -> None:
    """Two masks for the first defective image, of kinds with their own thresholds; validation images."""
    top = root / "breakfast_box"
    for i in range(3):
        image(top / "train" / "good" / f"{i:03d}.png", seed=i)
    for i in range(2):
        image(top / "validation" / "good" / f"{i:03d}.png", seed=5 + i)
        image(top / "test" / "good" / f"{i:03d}.png", seed=10 + i)
    for i, kind in enumerate(["logical_anomalies", "structural_anomalies"]):
        image(top / "test" / kind / "000.png", seed=20 + i)
        mask(top / "ground_truth" / kind / "000" / "000.png", value=255 - i)
    mask(top / "ground_truth" / "logical_anomalies" / "000" / "001.png", box=(10, 10, 12, 15), value=253)
    thresholds = [("missing_orange", 255, 12, False), ("broken", 254, 0.5, True), ("mixed", 253, 40, False)]
    names = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    content = [dict(zip(names, entry, strict=True)) for entry in thresholds]
    (top / "defects_config.json").write_text(json.dumps(content, indent=4))


def mvtec_ad_2(root: Path) -> None:
    """Lights in the names; validation images; private test sets, which are not listed."""
    top = root / "mvtec_ad_2" / "can"
    for i in range(3):
        image(top / "train" / "good" / f"{i:03d}_regular.png", seed=i)
    for i in range(2):
        image(top / "validation" / "good" / f"{i:03d}_regular.png", seed=5 + i)
        image(top / "test_private" / f"{i:03d}_regular.png", seed=30 + i)
        image(top / "test_private_mixed" / f"{i:03d}_mixed.png", seed=40 + i)
        light = ("overexposed", "shift_1")[i]
        image(top / "test_public" / "good" / f"{i:03d}_{light}.png", seed=10 + i)
        image(top / "test_public" / "bad" / f"{i:03d}_{light}.png", seed=20 + i)
        mask(top / "test_public" / "ground_truth" / "bad" / f"{i:03d}_{light}_mask.png")


def kolektor_sdd2(root: Path) -> None:
    """A mask beside every image, black for a good one; one defective training image, which is left out."""
    for split, first, n_good, n_defective in (("train", 10000, 3, 1), ("test", 20000, 2, 2)):
        for i in range(n_good + n_defective):
            number = first + (n_good + n_defective - 1 - i)
            image(root / split / f"{number}.png", seed=number)
            mask(root / split / f"{number}_GT.png", box=(2, 3, 7, 9) if i >= n_good else (0, 0, 0, 0))


def shanghaitech_campus(root: Path) -> None:
    """Scene 01: a training video of 3 frames, a test clip of 4 frames of which 2 are abnormal."""
    top = root / "shanghaitech"
    video(top / "training" / "videos" / "01_001.avi", n_frames=3)
    for i in range(4):
        image(top / "testing" / "frames" / "01_0014" / f"{i:03d}.jpg", seed=10 + i, size=(32, 16))
    masks = np.zeros((4, 16, 32), np.uint8)
    masks[2:, 3:9, 2:7] = 1
    for name, array in (("test_frame_mask", masks.any(axis=(1, 2)).astype(np.uint8)), ("test_pixel_mask", masks)):
        (top / "testing" / name).mkdir()
        np.save(top / "testing" / name / "01_0014.npy", array)


def video(path: Path, n_frames: int) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 60 * i + 40, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


def tarred(folder: Path, archive: Path) -> Path:
    with tarfile.open(
        archive, "w:xz" if archive.suffix == ".xz" else "w:gz" if archive.suffix == ".gz" else "w"
    ) as file:
        for path in sorted(folder.iterdir()):
            file.add(path, path.name)
    return archive


# data set -> (maker, category, archive as its owners pack it, images: training, good, defective)
MINIATURES: dict[str, tuple[Callable[[Path], None], str, str, tuple[int, int, int]]] = {
    "mvtec_ad": (mvtec, "bottle", "mvtec_anomaly_detection.tar.xz", (3, 2, 2)),
    "visa": (visa, "candle", "VisA_20220922.tar", (3, 2, 2)),
    "magnetic_tile": (magnetic_tile, "magnetic_tile", "magnetic-tile-defect-datasets.zip", (4, 1, 2)),
    "btad": (btad, "01", "btad.zip", (3, 2, 2)),
    "mpdd": (mpdd, "bracket_black", "MPDD.zip", (3, 2, 2)),
    "kolektor_sdd": (kolektor_sdd, "commutator", "KolektorSDD.zip", (4, 1, 2)),
    "mvtec_loco": (mvtec_loco, "breakfast_box", "mvtec_loco_anomaly_detection.tar.xz", (3, 2, 2)),
    "mvtec_ad_2": (mvtec_ad_2, "can", "mvtec_ad_2.tar.gz", (3, 2, 2)),
    "kolektor_sdd2": (kolektor_sdd2, "surface", "KolektorSDD2.zip", (3, 2, 2)),
    "shanghaitech_campus": (shanghaitech_campus, "01", "shanghaitech.tar.gz", (3, 2, 2)),
}
