"""Any image into the network's rectangle, and boxes back out of it. Lessons 10 and 12.

    x_input = x_image * inner_width / width + pad_x         y_input = y_image * inner_height / height + pad_y

inner_width and inner_height are whole pixels, so the two factors differ a little: by 1 % for a picture scaled to 50
pixels, and without limit for one that is a pixel high. `Placement` maps with both, which is what the resize did.
Left out on purpose: darknet's option to stretch the image instead.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from trtkit.boxes import check_boxes

LARGEST_STRIDE = 32
PAD_U8 = 128                # darknet pads with grey 0.5


@dataclass(frozen=True)
class Placement:
    """Where `letterbox` put an image. All lengths in pixels.

    Attributes:
        scale: pixels of the input per pixel of the image, before the sides were rounded.
        pad_x, pad_y: of the network input, left of and above the image.
        width, height: of the original image.
        inner_width, inner_height: of the image in the network input.
    """

    scale: float
    pad_x: int
    pad_y: int
    width: int
    height: int
    inner_width: int
    inner_height: int

    def to_input(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in pixels of the image to pixels of the network input; float32 stays float32."""
        boxes = check_boxes("boxes_xyxy", boxes_xyxy)
        inner, side, pad = self._factors()
        return (boxes.astype(np.float64) * inner / side + pad).astype(boxes.dtype)

    def to_image(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """The inverse of `to_input`, not clipped to the image. The image's corners come back exactly."""
        boxes = check_boxes("boxes_xyxy", boxes_xyxy)
        inner, side, pad = self._factors()
        return ((boxes.astype(np.float64) - pad) * side / inner).astype(boxes.dtype)

    def clip(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in pixels of the image, cut off at its edges."""
        return np.clip(boxes_xyxy, 0, np.array([self.width, self.height] * 2, boxes_xyxy.dtype))

    def _factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whole numbers: times first, then divided, a corner of the image suffers no rounding."""
        pairs = (self.inner_width, self.inner_height), (self.width, self.height), (self.pad_x, self.pad_y)
        return tuple(np.array(pair * 2, np.float64) for pair in pairs)


def letterbox_u8(img_hwc_u8: np.ndarray, size: int | tuple[int, int] = 416) -> tuple[np.ndarray, Placement]:
    """Scale an image to fit a square or rectangle, keeping its aspect ratio, centred on grey.

    Args:
        img_hwc_u8: (H, W, 3) uint8, RGB.
        size: side of the square, or (height, width), pixels, multiples of 32.

    Returns:
        The input (height, width, 3) uint8, and the placement that maps boxes back.

    Raises:
        ValueError: another shape or dtype, an empty image, or a size that is no multiple of 32.
    """
    if img_hwc_u8.dtype != np.uint8 or img_hwc_u8.ndim != 3 or img_hwc_u8.shape[2] != 3 or 0 in img_hwc_u8.shape:
        raise ValueError(
            f"img_hwc_u8: got shape {img_hwc_u8.shape} {img_hwc_u8.dtype}, expected (H, W, 3) uint8; "
            "convert with PIL's .convert('RGB') or stack grey three times"
        )
    input_h, input_w = check_size(size)
    height, width = img_hwc_u8.shape[:2]
    scale = min(input_w / width, input_h / height)
    inner_w, inner_h = max(round(width * scale), 1), max(round(height * scale), 1)
    place = Placement(scale, (input_w - inner_w) // 2, (input_h - inner_h) // 2, width, height, inner_w, inner_h)
    padded = np.full((input_h, input_w, 3), PAD_U8, np.uint8)
    inside = padded[place.pad_y : place.pad_y + inner_h, place.pad_x : place.pad_x + inner_w]
    inside[:] = cv2.resize(img_hwc_u8, (inner_w, inner_h), interpolation=cv2.INTER_LINEAR)
    return padded, place


def letterbox(img_hwc_u8: np.ndarray, size: int | tuple[int, int] = 416) -> tuple[np.ndarray, Placement]:
    """`letterbox_u8`, then what the network takes: `x_nchw` (1, 3, H, W) float32 in [0, 1], and the placement."""
    padded, place = letterbox_u8(img_hwc_u8, size)
    x_nchw = np.empty((1, 3, *padded.shape[:2]), np.float32)
    for plane, channel in zip(x_nchw[0], cv2.split(padded), strict=True):       # one plane at a time stays in cache
        np.multiply(channel, np.float32(1 / 255), out=plane)
    return x_nchw, place


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a network input given as one side or as both.

    Raises:
        ValueError: a side that is no positive multiple of 32, or not one or two sides.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, int | np.integer) and s > 0 and s % LARGEST_STRIDE == 0 for s in sides):
        raise ValueError(f"size: got {size}, expected a side or (height, width), each a positive multiple of 32, the "
                         "largest stride; try 416")
    return int(sides[0]), int(sides[1])
