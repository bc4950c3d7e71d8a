"""`sefi settings`: every setting with its value in a preset, and what it means."""

from sefi.cli import options


def settings(preset: options.Preset = "default", as_json: options.AsJson = False) -> None:
    """List every setting that `--set` changes, with its value in a preset."""
    from sefi.cli.inspect import flattened
    from sefi.cli.output import answer
    from sefi.core.config import described, to_dict
    from sefi.core.presets import preset_named

    config = to_dict(preset_named(preset))
    values = dict(flattened("", config))
    record = {name: {"value": values[name], "about": about} for name, about in described().items()}
    lines = [f"{name:32} {short(one['value']):24} {one['about']}".rstrip() for name, one in record.items()]
    answer(
        {"preset": preset, "method": config["method"], "settings": record},
        "\n".join(lines),
        as_json=as_json,
        command="settings",
    )


def short(value: object) -> str:
    """A value as `--set` takes it, long lists by their first entry."""
    if isinstance(value, list):
        return f"{value[0]}; ... ({len(value)})" if len(value) > 1 else str(value[0])
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
