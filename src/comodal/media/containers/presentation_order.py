"""Presentation times of frames in AVI, which stores no timestamps, only the order of decoding.

FFmpeg counts the packets. Where a codec reorders frames and its parser does not help (H.264), frames come out in the
order of presentation, but with the times of the order of decoding. So the n-th frame gets the n-th smallest time.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator

import av

MAX_REORDERED_FRAMES = 16  # H.264, A.3.1: the largest number of frames that a decoder holds


class PresentationOrder:
    """Gives frames that are in presentation order the times that they have, sorted."""

    def __init__(self) -> None:
        self.frames: deque[av.VideoFrame] = deque()
        self.times: list[int] = []
        self.next: int | None = None  # the expected time of the next frame, in ticks

    def sort(self, frames: Iterable[av.VideoFrame], is_last: bool) -> Iterator[av.VideoFrame]:
        """The frames whose times are certain, given further frames, their times changed in place."""
        for frame in frames:
            self.frames.append(frame)
            if frame.pts is not None:
                heapq.heappush(self.times, frame.pts)
        while self.frames and (is_last or len(self.frames) > MAX_REORDERED_FRAMES or self._is_next()):
            frame = self.frames.popleft()
            if frame.pts is not None:
                frame.pts = heapq.heappop(self.times)
                self.next = frame.pts + max(frame.duration, 1)
            yield frame

    def _is_next(self) -> bool:
        return not self.times or self.times[0] == self.next
