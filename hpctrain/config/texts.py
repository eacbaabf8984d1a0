"""The types of scalars in the config: numbers with their bounds, and texts with the pattern that they must `fullmatch`.

Text that reaches a `#SBATCH` line is confined by the `pattern` of its field, because sbatch's own lexer is no shell and
no quoting is safe there.
"""

from typing import Annotated

from msgspec import Meta


def _text(pattern: str, expect: str) -> Meta:
    """Text that must `fullmatch` the pattern; `expect` is what the error message asks for."""
    return Meta(extra={"pattern": pattern, "expect": expect})


Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]

Name = Annotated[
    str, _text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, '.', '_' and '-', at most 64, no '-' in front")
]
Word = Annotated[str, _text(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}", "one word of letters, digits and '_.@+-'")]
Words = Annotated[
    str, _text(r"[A-Za-z0-9_][A-Za-z0-9_.@+,-]{0,255}", "words of letters, digits and '_.@+-', separated by commas")
]
Time = Annotated[
    str,
    _text(
        r"[0-9]{1,3}-[0-9]{1,2}(:[0-5]?[0-9]){0,2}|[0-9]{1,4}:[0-5][0-9]:[0-5][0-9]",
        "a time as HH:MM:SS or D-HH:MM:SS, such as 12:00:00",
    ),
]
Memory = Annotated[str, _text(r"[1-9][0-9]{0,8}[KMGT]", "memory with its unit, such as 64G")]
Constraint = Annotated[
    str, _text(r"[A-Za-z0-9_][A-Za-z0-9_.&|*,()\[\]-]{0,255}", "node features joined by & | , ( ) [ ]")
]
Gres = Annotated[
    str, _text(r"[A-Za-z0-9_][A-Za-z0-9_.:,=-]{0,255}", "generic resources such as gpu:a100:4, separated by commas")
]
HostList = Annotated[str, _text(r"[A-Za-z0-9][A-Za-z0-9_.,\[\]-]{0,1023}", "host names or ranges such as n[1-4],gpu07")]
Dependency = Annotated[
    str, _text(r"singleton|[a-z]+(:[0-9_]+)+([,?][a-z]+(:[0-9_]+)+)*", "a dependency such as afterok:1234 or singleton")
]
MailType = Annotated[str, _text(r"[A-Z0-9_]+(,[A-Z0-9_]+)*", "mail types such as END,FAIL")]
Mail = Annotated[str, _text(r"[A-Za-z0-9][A-Za-z0-9._+-]*(@[A-Za-z0-9.-]+)?", "a mail address or user name")]
Path = Annotated[str, _text(r"[^\x00-\x1f\x7f]{1,4096}", "a path without control characters")]
Line = Annotated[str, _text(r"[^\x00-\x08\x0a-\x1f\x7f]{0,4096}", "one line of shell code")]
Pattern = Annotated[str, _text(r"[^\x00-\x1f\x7f]{1,256}", "a pattern of names, such as body.*")]
Module = Annotated[str, _text(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,255}", "a module such as cuda/12.4")]
Interface = Annotated[str, _text(r"[A-Za-z0-9_.-]{1,15}", "the name of one network interface, such as ib0")]
MpiType = Annotated[str, _text(r"[a-z0-9_]{1,32}", "one of what `srun --mpi=list` shows, such as pmix")]
HostSuffix = Annotated[str, _text(r"[A-Za-z0-9.-]{0,63}", "letters, digits, '.' and '-'")]
Mount = Annotated[
    str, _text(r"/[^\x00-\x1f\x7f:,]*(:/[^\x00-\x1f\x7f:,]*(:r[ow])?)?", "SRC[:DST[:ro]], absolute paths")
]
Image = Annotated[str, _text(r"[A-Za-z0-9/.~][^\x00-\x20\x7f]{0,1023}", "a path or address of an image, no blanks")]
Function = Annotated[
    str, _text(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", "the user's own as package.module:function")
]

Workers = Annotated[str, _text(r"auto|[1-9][0-9]{0,2}", "auto or a whole number of at least 1")]
Fold = Annotated[str, _text(r"[1-9][0-9]{0,3}/[1-9][0-9]{0,3}", "a fold as k/K, such as 2/5")]
Column = Annotated[str, _text(r"[^\x00-\x1f\x7f]{1,256}", "the name of a column")]


def seconds(time: str) -> int:
    """Read a `Time`: HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, rest = parts + [0] * (3 - len(parts))
    return (int(days) * 86400 if dash else 0) + hours * 3600 + minutes * 60 + rest
