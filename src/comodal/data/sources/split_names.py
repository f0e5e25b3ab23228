"""The names that data sets use for their splits."""

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validate": "validation",
    "validation": "validation", "test": "test", "testing": "test",
}  # fmt: skip
IMAGE_SPLIT_NAMES = SPLIT_NAMES | {"restval": "train", "dev": "validation"}  # Karpathy's, and Flickr8k's
