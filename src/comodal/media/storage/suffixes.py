"""The suffixes of media files, which every command uses to search a folder."""

AUDIO_SUFFIXES = frozenset({
    ".wav", ".wave", ".w64", ".rf64", ".bwf", ".flac", ".ogg", ".oga", ".opus", ".spx", ".mp3", ".mp2", ".mpga", ".m4a",
    ".m4b", ".aac", ".adts", ".wma", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".mka", ".weba", ".ac3", ".eac3",
    ".dts", ".amr", ".ape", ".wv", ".tta", ".tak", ".mpc", ".mlp", ".thd", ".voc", ".3ga", ".sph", ".nist",
})  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".vob", ".ts", ".mts",
    ".m2ts", ".m2t", ".ogv", ".ogm", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".mxf", ".nut", ".rm", ".rmvb",
    ".dv",
})  # fmt: skip
