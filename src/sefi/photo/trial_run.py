"""Program of a child process: run the ONNX network on standard input once, as `sefi.photo.detect` asks.

    python -P trial_run.py detector|recogniser|classifier

It imports OpenCV and nothing of `sefi`, so that it starts quickly.
"""

import sys

import cv2
import numpy as np

OUT_OF_MEMORY = 3
LARGEST_MEMORY = 4 * 2**30


def limit_process() -> None:
    """Limit the memory and write no core file, where the system can."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > LARGEST_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (LARGEST_MEMORY, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_network(kind: str, content: bytes) -> None:
    """Load the network and give it one grey image; `cv2.error` if OpenCV refuses."""
    network, nothing = np.frombuffer(content, np.uint8), np.zeros(0, np.uint8)
    if kind == "detector":
        for side in (64, 320):
            detector = cv2.FaceDetectorYN.create("onnx", network, nothing, (side, side))
            detector.detect(np.full((side, side, 3), 128, np.uint8))
    elif kind == "recogniser":
        cv2.FaceRecognizerSF.create("onnx", network, nothing).feature(np.full((112, 112, 3), 128, np.uint8))
    else:
        classifier = cv2.dnn.readNetFromONNX(network)
        for side in (96, 112):
            classifier.setInput(np.full((1, 3, side, side), 128, np.float32))
            classifier.forward()


def main() -> int:
    """Return 0, whatever OpenCV says itself, or 3 if memory was not enough."""
    limit_process()
    cv2.setNumThreads(1)
    try:
        run_network(sys.argv[1], sys.stdin.buffer.read())
    except cv2.error as error:
        return OUT_OF_MEMORY if error.code == cv2.Error.StsNoMem else 0
    except MemoryError:
        return OUT_OF_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main())
