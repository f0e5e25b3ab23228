"""ImageNet's layouts: whose class a validation picture is, by Kaggle's file, by the devkit, by folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from comodal.errors import DataError
from comodal.tasks.image.imagenet_files import REASON_UNTRAINED_CLASS, read_labeled_images

# The devkit's first four classes; by their names the tench would come first.
KIT_FOX, SETTER, HUSKY, TENCH = "n02119789", "n02100735", "n02110185", "n01440764"
NUMBERS = {1: KIT_FOX, 2: SETTER, 3: HUSKY, 449: TENCH}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "JPEG")


def plant(root: Path, train: str = "train", validation: str = "val", tests: int = 4) -> Path:
    """One training picture a class, and validation pictures in one folder."""
    for wnid in NUMBERS.values():
        picture(root / train / wnid / f"{wnid}_1.JPEG")
    for number in range(1, tests + 1):
        picture(root / validation / f"ILSVRC2012_val_{number:08d}.JPEG")
    return root


def write_devkit(folder: Path, numbers: str) -> Path:
    """meta.mat as the devkit has it: classes, and above them one of the other synsets, which has children."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, f"words of {wnid}, others", "", 0) for number, wnid in NUMBERS.items()]
    rows.append((1001, "n00001740", "entity", "", 3))
    synsets = np.array(rows, dtype=fields)
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)
    return folder


def classes_of(root: Path) -> list[str]:
    return [item.category for item in read_labeled_images(root).items if item.is_test]


def test_kaggles_layout(tmp_path: Path):
    plant(tmp_path / "ILSVRC/Data/CLS-LOC", tests=2)
    picture(tmp_path / "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG")  # of unknown class, not ours
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        f"ILSVRC2012_val_00000002,{TENCH} 85 1 499 272 \n"
        f"ILSVRC2012_val_00000001,{HUSKY} 1 2 3 4 {HUSKY} 5 6 7 8 \n"
    )
    (tmp_path / "LOC_synset_mapping.txt").write_text(f"{TENCH} tench, Tinca tinca\n{HUSKY} Siberian husky\n")
    pictures = read_labeled_images(tmp_path)
    assert [(item.path.stem[-1], item.category) for item in pictures.items if item.is_test] == [
        ("1", HUSKY),
        ("2", TENCH),
    ]
    assert sum(not item.is_test for item in pictures.items) == 4
    assert pictures.names == {TENCH: "tench", HUSKY: "Siberian husky"}
    assert pictures.files["labels"].name == "LOC_val_solution.csv"
    assert pictures.is_imagenet and pictures.split == "val"
    assert not pictures.is_official  # four classes are not a thousand
    assert classes_of(tmp_path / "ILSVRC/Data/CLS-LOC") == [HUSKY, TENCH]  # the files above are found


def test_the_devkits_numbers_are_not_the_order_of_the_names(tmp_path: Path):
    plant(tmp_path, "ILSVRC2012_img_train", "ILSVRC2012_img_val")
    write_devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data", "449\n1\n2\n3\n")
    assert classes_of(tmp_path) == [TENCH, KIT_FOX, SETTER, HUSKY]
    assert read_labeled_images(tmp_path).names[TENCH] == f"words of {TENCH}"


def test_the_list_of_later_devkits(tmp_path: Path):
    plant(tmp_path, tests=2)
    folder = tmp_path / "ILSVRC" / "devkit" / "data"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2015_clsloc_validation_ground_truth.txt").write_text("3\n1\n")
    with pytest.raises(DataError, match=r"neither meta\.mat nor map_clsloc\.txt, .* is next to it"):
        read_labeled_images(tmp_path)
    (folder / "map_clsloc.txt").write_text(
        f"{KIT_FOX} 1 kit_fox\n{SETTER} 2 English_setter\n{HUSKY} 3 Siberian_husky\n"
    )
    assert classes_of(tmp_path) == [HUSKY, KIT_FOX]


def test_class_folders_and_a_part_of_the_classes(tmp_path: Path):
    for wnid in (HUSKY, TENCH):
        picture(tmp_path / "folders" / "train" / wnid / "a.JPEG")
        picture(tmp_path / "folders" / "val" / wnid / "b.JPEG")
    assert classes_of(tmp_path / "folders") == [TENCH, HUSKY]
    for wnid in (HUSKY, TENCH):
        picture(tmp_path / "some" / "train" / wnid / "a.JPEG")
    for number in (1, 2, 3):
        picture(tmp_path / "some" / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    write_devkit(tmp_path / "some" / "ILSVRC2012_devkit_t12", "449\n1\n3\n3\n")
    with pytest.raises(DataError, match=r"val: 1 of 3 labeled images are missing, the first is .*_val_00000004"):
        read_labeled_images(tmp_path / "some")
    write_devkit(tmp_path / "some" / "ILSVRC2012_devkit_t12", "449\n1\n3\n1\n")  # of no class that is there
    pictures = read_labeled_images(tmp_path / "some")
    assert [item.category for item in pictures.items if item.is_test] == [TENCH, HUSKY]
    assert pictures.excluded == {REASON_UNTRAINED_CLASS: 1}


def test_an_image_folder_is_read_as_before(tmp_path: Path):
    for side in ("train", "validation"):
        for kind in "ab":
            picture(tmp_path / side / kind / "1.jpg")
    pictures = read_labeled_images(tmp_path)
    assert (pictures.split, pictures.is_imagenet, len(pictures.items)) == ("validation", False, 4)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("LOC_val_solution.csv", "a,b\n", "its first line must be ImageId,PredictionString"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nx,dog 1 2 3 4\n", r"csv, line 2: 'x,dog 1 2 3 4' is not"),
        ("LOC_val_solution.csv", f"ImageId,PredictionString\nx,{TENCH} 1\n", r"val_00000001\.JPEG: no label; 4 of 4"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n2\nthree\n", r"truth\.txt, line 3: 'three' is not a class id"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n1001\n", r"line 2: '1001' is not a class id"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n2\n", r"val_00000003\.JPEG: no label; 2 of 4 images have"),
        ("meta.mat", "no matrix", r"meta\.mat: not the devkit's list of classes"),
    ],
)
def test_damaged_label_files_are_told(tmp_path: Path, name: str, text: str, sentence: str):
    plant(tmp_path)
    if not name.endswith("csv"):
        write_devkit(tmp_path, "1\n2\n3\n449\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_labeled_images(tmp_path)


def test_pictures_without_labels_are_told(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"not in class folders; LOC_val_solution\.csv or ILSVRC2012_devkit_t12 must be in"
    ):
        read_labeled_images(plant(tmp_path))
