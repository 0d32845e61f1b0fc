"""The commands there are, and what `raycap --help` says of them. How they are read is the command line's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One act as a person sees it. The first section is the command's own: its flags need no prefix."""

    summary: str
    act: str  # module:function, called with the config, returns the exit code
    sections: tuple[str, ...]
    words: str = ""  # the option of `act`'s section that the words before the flags fill; "": they are SOURCE
    several: str = ""  # the option that they fill where they are more than one


COMMANDS = {
    "inspect": Command(
        "read every picture of a source and say what is there and what cannot be read",
        "raycap.commands.inspect:inspect",
        ("inspect", "source", "fetch", "reading", "cluster"),
    ),
    "caption": Command(
        "write a caption for every picture of a source into a table that can be resumed, or say those of photos",
        "raycap.commands.caption:caption",
        ("caption", "source", "fetch", "reading", "search", "cluster"),
        several="photos",
    ),
    "extract": Command(
        "encode every picture once, for training: a table of features that can be resumed and added to",
        "raycap.commands.extract:extract",
        ("extract", "source", "fetch", "reading", "encoder", "cluster"),
    ),
    "train": Command(
        "train a captioner on pictures that people have described; the same command goes on where it stopped",
        "raycap.commands.train:train",
        (
            "train",
            "source",
            "fetch",
            "reading",
            "vocabulary",
            "encoder",
            "decoder",
            "search",
            "cluster",
        ),
    ),
    "tune": Command(
        "train many captioners over a space of options, end the bad ones early, and keep the best",
        "raycap.commands.tune:tune",
        (
            "tune",
            "train",
            "source",
            "fetch",
            "reading",
            "vocabulary",
            "encoder",
            "decoder",
            "search",
            "cluster",
        ),
    ),
    "evaluate": Command(
        "judge tables of captions, or captioners, by human captions, side by side, with intervals",
        "raycap.commands.evaluate:evaluate",
        ("evaluate", "metric", "source", "caption", "fetch", "reading", "search", "cluster"),
        words="tables",
    ),
    "report": Command(
        "make one page of caption tables, training runs or sweeps: pictures, scores, what failed",
        "raycap.commands.report:report",
        ("report", "evaluate", "metric", "source", "fetch", "reading"),
        words="tables",
    ),
}

ABOUT = "Captions for large piles of pictures, and the captioners that write them, on one laptop or a Ray cluster."
EXAMPLES = """\
examples:
  raycap caption photo.jpg                                its caption, here and now
  raycap caption photos/ --model DIR --out captions/      a caption for every picture, in one table
  raycap inspect photos/                                  a folder, its sub-folders too
  raycap inspect s3://bucket/pictures                     anything that fsspec can open
  raycap inspect urls.txt --fetch.threads 128             a list of addresses, one a line
  raycap inspect pairs.csv --source.column image_url      a table with a column of addresses
  raycap inspect flickr8k/ --config run.yaml --limit 500  options from a file, changed by flags
  raycap evaluate a/ b.json --references flickr8k/ --split dev     whose captions are better, and how surely

`raycap COMMAND --help` lists every option of a command; `--print-config` shows what a command would run with.
"""
