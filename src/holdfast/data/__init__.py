"""Images in, labelled and split: loading, splitting, corrupting and changing data sets.

`load_data` takes a name, a path or an object to `Data`, whose splits are `Images`. Transforms (long tail, label noise,
subset, relabel, synthetic outliers) are methods, each in its own file; corruptions are in `holdfast.data.corruptions`.
"""

from holdfast.data.contact_sheet import contact_sheet
from holdfast.data.corruptions import CORRUPTIONS, Corruption, corrupt
from holdfast.data.images import Data, Images, concat, to_float
from holdfast.data.label_noise import LabelNoise
from holdfast.data.load import load_data
from holdfast.data.loading import loader
from holdfast.data.long_tail import LongTail
from holdfast.data.ood_sets import ood_sets
from holdfast.data.relabel import Relabel
from holdfast.data.resize import recoloured, resized
from holdfast.data.splits import split, split_indices
from holdfast.data.subset import Subset
from holdfast.data.synthetic_outliers import SyntheticOutliers

__all__ = [
    "CORRUPTIONS",
    "Corruption",
    "Data",
    "Images",
    "LabelNoise",
    "LongTail",
    "Relabel",
    "Subset",
    "SyntheticOutliers",
    "concat",
    "contact_sheet",
    "corrupt",
    "load_data",
    "loader",
    "ood_sets",
    "recoloured",
    "resized",
    "split",
    "split_indices",
    "to_float",
]
