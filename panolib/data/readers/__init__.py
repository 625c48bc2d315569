"""One module a data set on disk: its reader and, where it has a section in profiles, its registration.

Opening a data set lists folders and pairs files by name; pixels are decoded one sample at a time. File ids
become train ids by class name (`panolib.labels`). `with_labels` False never touches labels, not even to list
them. Anything unexpected is an error that names the file, the value found and what was expected:
FileNotFoundError for a missing folder, and for an image without its label or a label without its image;
ValueError for an empty split and, when a sample is read, for a class id outside the table, sizes that differ
and labels of another bit depth.
"""

from panolib.data.describe import describe
from panolib.data.domains import DOMAINS, open_domains
from panolib.data.readers.camvid import CamVid
from panolib.data.readers.city import CitySources
from panolib.data.readers.cityscapes import Cityscapes
from panolib.data.readers.coco import CocoPanoptic
from panolib.data.readers.folders import Folders
from panolib.data.readers.gta5 import GTA5
from panolib.data.readers.nuclei import Nuclei
from panolib.data.readers.synthia import Synthia

__all__ = [
    "DOMAINS", "GTA5", "CamVid", "CitySources", "Cityscapes", "CocoPanoptic", "Folders", "Nuclei", "Synthia",
    "describe", "open_domains",
]  # fmt: skip
