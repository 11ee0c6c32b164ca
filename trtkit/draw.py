"""What did the detector see? Boxes, labels and a caption on a copy of the frame. Lesson 12.

Colours: Okabe and Ito 2008, "Color Universal Design", without black, then the same hues darker and lighter:
21 colours, class k takes colour k mod 21, so a class looks the same in every frame, video and session.
Left out on purpose: masks, trails and fonts other than OpenCV's own.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from trtkit.yolo import Detection

_OKABE_ITO = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
)
# (21, 3) uint8, RGB
PALETTE = np.concatenate([_OKABE_ITO, _OKABE_ITO * 0.6, 255 - (255 - _OKABE_ITO) * 0.5]).astype(np.uint8)
_INK = (20, 20, 20)         # outline of the boxes: keeps a yellow box visible on white
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_REFERENCE_PX = 640         # longer side of an image at which lines are 2 px and text is 0.45 OpenCV units


def class_color(label: int) -> tuple[int, int, int]:
    """The fixed colour of a class, RGB, each 0 to 255."""
    return tuple(int(c) for c in PALETTE[label % len(PALETTE)])


def annotate(
    img_hwc_u8: np.ndarray, detection: Detection, class_names: Sequence[str], *, caption: str | None = None
) -> np.ndarray:
    """Draw detections on a copy of an image: a box and "name score" in the colour of the class, best score on top.

    Args:
        img_hwc_u8: (H, W, 3) uint8, RGB; left as it is.
        detection: boxes in pixels of this image; parts outside the image are cut off.
        class_names: the name of every label, index = label.
        caption: text of a dark strip along the upper edge, for example the frame rate. None: no strip.

    Returns:
        (H, W, 3) uint8, RGB, a new array. Lines and text grow with the longer side of the image.

    Raises:
        ValueError: another shape or dtype, a label without a name, or a box with a NaN or infinite corner.
    """
    if img_hwc_u8.dtype != np.uint8 or img_hwc_u8.ndim != 3 or img_hwc_u8.shape[2] != 3 or 0 in img_hwc_u8.shape:
        raise ValueError(
            f"img_hwc_u8: got shape {img_hwc_u8.shape} {img_hwc_u8.dtype}, expected (H, W, 3) uint8 RGB; "
            "multiply a float image by 255 and convert it with .astype(np.uint8)"
        )
    labels, boxes_xyxy = detection.labels, detection.boxes_xyxy
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError(
            f"labels: got {labels.min()} to {labels.max()}, expected 0 to {len(class_names) - 1} "
            f"({len(class_names)} class_names); pass the class names that this model was trained on"
        )
    if not np.isfinite(boxes_xyxy).all():
        bad = int(np.flatnonzero(~np.isfinite(boxes_xyxy).all(1))[0])
        raise ValueError(
            f"boxes_xyxy[{bad}]: got {boxes_xyxy[bad].tolist()}, expected finite pixels; "
            "check the engine's outputs for NaN (FP16 overflow, a wrong scale)"
        )
    drawn = img_hwc_u8.copy(order="C")
    height, width = drawn.shape[:2]
    zoom = max(height, width) / _REFERENCE_PX
    line_px = max(1, round(2 * zoom))
    # One pixel beyond the image keeps the cut edge of a box off the picture, and int32 safe from huge numbers.
    corners = np.clip(np.rint(boxes_xyxy), -1, [width, height] * 2).astype(int).tolist()
    order = np.argsort(detection.scores, kind="stable").tolist()
    outline = [(_INK, line_px + 2)] if line_px > 1 else []      # on a thumbnail it would hide the colour
    for color, thickness in [*outline, (None, line_px)]:
        for i in order:
            x1, y1, x2, y2 = corners[i]                 # upright lines on whole pixels have nothing to antialias
            cv2.rectangle(drawn, (x1, y1), (x2, y2), color or class_color(labels[i]), thickness)
    strip_px = _strip(drawn, caption, zoom) if caption else 0
    for i in order:                                     # after all boxes: no line crosses a label
        text = f"{class_names[labels[i]]} {detection.scores[i]:.2f}"
        _label(drawn[strip_px:], text, corners[i][0], corners[i][1] - strip_px, class_color(labels[i]), zoom)
    return drawn


def _text_size(text: str, zoom: float, width: int) -> tuple[float, int, int, int, int]:
    """Font scale at which `text` fits `width` pixels, line thickness, and text width, height, padding in pixels."""
    thickness, pad = max(1, round(zoom)), max(2, round(3 * zoom))
    scale = max(0.45 * zoom, 0.4)
    (text_w, text_h), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
    if text_w + 2 * pad > width:
        scale *= max(width - 2 * pad, 1) / text_w
        (text_w, text_h), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
    return scale, thickness, text_w, text_h + baseline, pad


def _label(drawn: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int], zoom: float) -> None:
    """Text on a filled background above (x, y), moved inside the image where it would stick out. In place."""
    height, width = drawn.shape[:2]
    scale, thickness, text_w, text_h, pad = _text_size(text, zoom, width)
    label_w, label_h = text_w + 2 * pad, text_h + pad
    left, top = max(0, min(x, width - label_w)), max(0, min(y - label_h, height - label_h))
    cv2.rectangle(drawn, (left, top), (left + label_w - 1, top + label_h - 1), color, cv2.FILLED)
    # Rec. 601 luma decides between black and white text.
    ink = (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 128 else (255, 255, 255)
    _put(drawn, text, left + pad, top, text_h, pad, scale, ink, thickness)


def _strip(drawn: np.ndarray, text: str, zoom: float) -> int:
    """White text on a darkened strip along the upper edge, in place; returns the strip's height in pixels."""
    scale, thickness, _, text_h, pad = _text_size(text, zoom, drawn.shape[1])
    strip = drawn[: min(text_h + 2 * pad, drawn.shape[0] // 2)]
    np.right_shift(strip, 2, out=strip)                 # a quarter of the light stays: the scene shines through
    _put(drawn, text, pad, 0, text_h, 2 * pad, scale, (255, 255, 255), thickness)
    return len(strip)


def _put(drawn, text, left, top, text_h, pad, scale, ink, thickness) -> None:
    """`putText` with the text centred in a bar of height text_h + pad whose corner is (left, top)."""
    (_, above), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
    y = top + (text_h + pad - above - baseline) // 2 + above
    cv2.putText(drawn, text, (left, y), _FONT, scale, ink, thickness, cv2.LINE_AA)
