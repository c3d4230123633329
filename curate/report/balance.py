"""What the summary and the page say of the balance: head and tail before and after."""

from __future__ import annotations

from typing import Any


def describe_balance(funnel: dict[str, Any]) -> str:
    """Return a sentence, or "" of a run without a balance."""
    told = funnel.get("balance")
    if not told:
        return ""
    before, after = told["before"], told["after"]
    drawn = f"{told['kept']:,} of {before['images']:,} retrieved images kept"
    if after["images"] != told["kept"]:
        drawn += f", to be drawn {after['images']:,} times in all"
    return (
        f"{drawn}; the largest tenth of {told['clusters']:,} clusters holds "
        f"{100 * before['largest_tenth']:.1f} % before and {100 * after['largest_tenth']:.1f} % after, "
        f"as even as {before['effective_clusters']:,.1f} and {after['effective_clusters']:,.1f} "
        "clusters of one size"
    )
