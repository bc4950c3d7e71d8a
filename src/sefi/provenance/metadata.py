"""Words in an image's file that say a machine made it, and how: XMP with IPTC's source type, and PNG text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import quoteattr

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from PIL import Image, PngImagePlugin

from sefi.core.prompts import PLACEHOLDER

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
UNMARKED = "without invisible mark"  # in the XMP packet of an image that has none
XMP_KEY = "XML:com.adobe.xmp"  # of a PNG's text, as Adobe and ExifTool read it
PARAMETERS_KEY = "parameters"  # that AUTOMATIC1111 writes and most viewers show
OWN = "urn:sefi:1"  # the namespace of what no standard has a word for
DIGITS = 16  # of an identity's SHA-256, as a file's words have it
LONGEST_TEXT = 1 << 20  # bytes of a text chunk that is read
XMP_TEMPLATE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="{iptc}"
   xmp:CreatorTool={tool}{more}/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
# What AUTOMATIC1111 calls our samplers, so that its readers know them.
SAMPLER_NAMES = {
    "ddim": "DDIM", "dpm++": "DPM++ 2M", "dpm++_karras": "DPM++ 2M Karras", "dpm++_sde": "DPM++ 2M SDE",
    "euler": "Euler", "euler_a": "Euler a", "lcm": "LCM",
}  # fmt: skip


@dataclass(frozen=True)
class ImageRecord:
    """What an image's file says of how it was made.

    Attributes:
        prompt, negative_prompt: as they were given; names are hidden unless `names` is set.
        settings: of sampling: `scheduler`, `steps`, `guidance_scale` and what else is to be said.
        model: name and fingerprint of the model.
        identities: SHA-256 of each identity's file.
        names: say who the subjects are called.
    """

    prompt: str
    seed: int
    size: tuple[int, int]
    negative_prompt: str = ""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    model: str = ""
    identities: tuple[str, ...] = ()
    version: str = ""
    names: bool = False

    def hide_names(self, text: str) -> str:
        """Return a prompt with `<subject>` for every name, unless names are to be said."""
        return text if self.names else hide_names(text)


def hide_names(text: str) -> str:
    """Return a text with `<subject>` for the name of every subject.

    >>> hide_names("a photo of <ada> and <bob>")
    'a photo of <subject> and <subject>'
    """
    return PLACEHOLDER.sub("<subject>", text)


def format_xmp(version: str, *, unmarked: bool = False, identities: Sequence[str] = (), generated: bool = True) -> str:
    """Format the XMP packet of an image.

    Args:
        unmarked: it says that there is no invisible mark.
        identities: SHA-256 of those that the image shows, where no other words of its file name them; so that
            `sefi forget` finds it.
        generated: a trained model made it; False for pictures of a photo.
    """
    tool = f"sefi {version}".strip() + (f", {UNMARKED}" if unmarked else "")
    more = f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"' if generated else ""
    if identities:
        more += f'\n   xmlns:sefi="{OWN}" sefi:Identities="{shorten_digests(identities)}"'
    return XMP_TEMPLATE.format(iptc=IPTC, tool=quoteattr(tool), more=more)


# In the place of an identity's SHA-256 in a picture of what is to be learned, until there is one.
NOT_LEARNED_YET = "0" * 64


def shorten_digests(identities: Iterable[str]) -> str:
    """Return the first digits of SHA-256, each once, as the words of a file have them."""
    return " ".join(dict.fromkeys(one[:DIGITS] for one in identities))


def format_parameters(record: ImageRecord) -> str:
    """Format what made an image as AUTOMATIC1111 does: prompt, negative prompt, one line of settings."""
    settings = dict(record.settings)
    sampler = str(settings.pop("scheduler", ""))
    line: dict[str, object] = {
        "Steps": settings.pop("steps", None),
        "Sampler": SAMPLER_NAMES.get(sampler, sampler),
        "CFG scale": settings.pop("guidance_scale", None),
        "Seed": record.seed,
        "Size": f"{record.size[0]}x{record.size[1]}",
        "Model": record.model,
        "Identities": shorten_digests(record.identities),
        **settings,
        "Version": f"sefi {record.version}".strip(),
    }
    parts = ", ".join(f"{name}: {_quote(value)}" for name, value in line.items() if value not in (None, ""))
    negative = [f"Negative prompt: {record.hide_names(record.negative_prompt)}"] if record.negative_prompt else []
    return "\n".join([record.hide_names(record.prompt), *negative, parts])


def _quote(value: object) -> str:
    """Return a value of the line of settings, quoted where it would look like several."""
    text = str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if re.search(r"[,:\n]", text) else text


def make_png_text(
    record: ImageRecord | None,
    version: str,
    *,
    unmarked: bool = False,
    identities: Sequence[str] = (),
    generated: bool = True,
) -> PngImagePlugin.PngInfo:
    """Make the text of a PNG: always the XMP packet, and the parameters where there is a record."""
    text = PngImagePlugin.PngInfo()
    packet = format_xmp(version, unmarked=unmarked, identities=identities, generated=generated)
    text.add_itxt(XMP_KEY, packet)
    if record is not None:
        text.add_itxt(PARAMETERS_KEY, format_parameters(record))
    return text


def read_xmp(image: Image.Image) -> str | None:
    """Read an image's XMP packet, of a PNG, a JPEG or a WebP; None if there is none, or an overlong one."""
    packet = image.info.get(XMP_KEY) or image.info.get("xmp")
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else packet
    return text if isinstance(text, str) and len(text) <= LONGEST_TEXT else None


def read_source_type(image: Image.Image) -> str | None:
    """Read IPTC's digital source type out of an image's XMP packet; None if there is none."""
    return _read_xmp_value(image, f"{{{IPTC}}}DigitalSourceType")


def read_identity_digests(image: Image.Image) -> frozenset[str]:
    """Read the first digits of the SHA-256 of each identity that an image's words name."""
    words = image.info.get(PARAMETERS_KEY)
    line = words.rpartition("\n")[2] if isinstance(words, str) else ""
    found = [_read_xmp_value(image, f"{{{OWN}}}Identities") or "", *re.findall(r"\bIdentities: ([0-9a-f ]+)", line)]
    return frozenset(one for text in found for one in text.split() if re.fullmatch(f"[0-9a-f]{{{DIGITS}}}", one))


def _read_xmp_value(image: Image.Image, name: str) -> str | None:
    """Return an attribute, or the text of an element, of an image's XMP packet; None if there is none."""
    text = read_xmp(image)
    if text is None:
        return None
    body = re.sub(r"<\?xpacket.*?\?>", "", text, flags=re.DOTALL).strip("\ufeff\x00 \n\r\t")
    try:
        tree = fromstring(body)
    except (ParseError, DefusedXmlException):
        return None
    for element in tree.iter():
        if name in element.attrib:
            return element.attrib[name]
        if element.tag == name:
            return element.text
    return None
