"""The names of all baselines, in metrics (TASK.baseline.NAME) and on the results card."""

MOST_FREQUENT, WORDS, WORDS_AND_REGIONS = "most_frequent", "words", "words_and_regions"
BOX_GEOMETRY, WORDS_TIMES_REGIONS = "box_geometry", "words_times_regions"
TEXT_SIMILARITY, TEXT_FEATURES = "text_similarity", "text_features"
LINEAR_MAPS = "linear_maps"
BASELINE_LABELS = {
    MOST_FREQUENT: "baseline: most frequent label",
    WORDS: "baseline: bag of words",
    WORDS_AND_REGIONS: "baseline: bag of words and region features",
    BOX_GEOMETRY: "baseline: box geometry",
    WORDS_TIMES_REGIONS: "baseline: bag of words times region features",
    TEXT_SIMILARITY: "baseline: text similarity",
    TEXT_FEATURES: "baseline: text similarity, length and names",
    LINEAR_MAPS: "baseline: linear maps",
}
