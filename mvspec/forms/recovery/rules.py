"""Whether a tag is structure, stray or a word: one rule for each of the twelve."""

from __future__ import annotations

from collections.abc import Callable

from mvspec.forms.recovery.scan import Scan
from mvspec.law.tags import Tag

__all__ = ["RULES", "Rule"]

Rule = Callable[[Scan], None]
"""Reads what is open and accepts, writes or drops tags, so that the tag at hand is dealt with."""


def think(scan: Scan) -> None:
    if scan.had_think or scan.top is not None:
        scan.stray()
    elif not scan.events and not scan.has_text(0, scan.at):
        scan.accept(Tag.THINK)
    elif scan.stands_alone() or scan.following is Tag.END_THINK:
        scan.drop("stray-tag", "<Think> comes first: moved to the start")
        scan.open_think()
    else:
        scan.word()


def end_think(scan: Scan) -> None:
    inside = scan.find(Tag.PARALLEL) >= 0
    continues = scan.following not in (None, Tag.PARALLEL, Tag.THINK, Tag.END_THINK)
    if (scan.had_think and scan.find(Tag.THINK) < 0) or (inside and continues):
        scan.stray()
    elif not scan.stands_alone() and scan.at != scan.last_end_think:
        scan.word()
    else:
        if not scan.had_think:
            scan.open_think()
        scan.close_to(scan.find(Tag.THINK))
        scan.accept(Tag.END_THINK)
        scan.too_deep = 0


def parallel(scan: Scan) -> None:
    block = scan.block()
    if not scan.stands_alone() and scan.following is not Tag.GOAL:
        scan.word()
        return
    if block and not scan.in_body():
        if scan.top is Tag.PARALLEL and not block.goal:
            scan.stray()
            return
        if scan.top is Tag.PARALLEL and block.path_end and block.path_count < block.outline_count:
            scan.reopen("a block follows where a path was expected: kept in the path before it")
        else:
            scan.close_to(scan.find(Tag.PARALLEL) - 1)
    if scan.depth() >= scan.max_depth:
        scan.deep()
        scan.too_deep = 1
    else:
        scan.accept(Tag.PARALLEL)


def end_parallel(scan: Scan) -> None:
    index = scan.find(Tag.PARALLEL)
    continues = scan.following in (Tag.PATH, Tag.END_PATH, Tag.CONCLUSION)
    if index < 0 or (scan.top is Tag.PATH and continues):
        scan.stray()
    elif scan.top is not Tag.PARALLEL and not scan.stands_alone():
        scan.word()
    else:
        scan.close_inside(index)
        scan.accept(Tag.END_PARALLEL)


def goal(scan: Scan) -> None:
    block = scan.block()
    if block and scan.top is Tag.PARALLEL and not block.goal:
        scan.accept(Tag.GOAL)
    elif scan.top in (Tag.GOAL, Tag.OUTLINE) or (
        scan.top is Tag.PARALLEL and block and not block.path_count and not block.conclusion_end
    ):
        scan.stray()
    elif not scan.stands_alone() and scan.following is not Tag.OUTLINE:
        scan.word()
    else:
        if not scan.in_body():
            scan.close_to(scan.find(Tag.PARALLEL) - 1)
        if scan.open_block():
            scan.accept(Tag.GOAL)


def end_goal(scan: Scan) -> None:
    if scan.top not in (Tag.GOAL, Tag.OUTLINE):
        scan.stray()
        return
    index = scan.find(Tag.GOAL)
    scan.close_to(index)
    if not scan.parent.outline_count:
        message = "the goal has no outline: expected <Outline> before </Goal>"
        scan.write(Tag.OUTLINE, "missing-outline", message)
        scan.close_to(index)
    scan.accept(Tag.END_GOAL)


def outline(scan: Scan) -> None:
    block = scan.block()
    if scan.doubled():
        scan.once()
    if scan.top is Tag.GOAL:
        scan.accept(Tag.OUTLINE)
    elif not scan.stands_alone() and not scan.label_after(scan.end):
        scan.word()
    elif scan.top is Tag.OUTLINE:
        scan.close_to(scan.find(Tag.GOAL))
        scan.accept(Tag.OUTLINE)
    elif scan.top is Tag.PARALLEL and block and not block.path_count and not block.conclusion_end:
        if block.goal:
            scan.reopen("</Goal> comes after the last </Outline>: left out")
        else:
            scan.open_goal()
        scan.accept(Tag.OUTLINE)
    elif scan.in_body() and scan.following is Tag.END_OUTLINE:
        if scan.open_block():
            scan.open_goal()
            scan.accept(Tag.OUTLINE)
    else:
        scan.stray()


def end_outline(scan: Scan) -> None:
    if scan.top is Tag.OUTLINE:
        scan.accept(Tag.END_OUTLINE)
    else:
        scan.stray()


def path(scan: Scan) -> None:
    label = scan.label_after(scan.end)
    if scan.doubled():
        scan.once()
    wanted = scan.wanting(label)
    block = scan.block()
    if scan.top is Tag.PARALLEL and block and not block.conclusion_end:
        index = wanted if wanted >= 0 else len(scan.stack) - 1
    elif not label or (wanted < 0 and not scan.stands_alone()):
        scan.word()
        return
    elif wanted >= 0:
        index = wanted
    elif scan.top is Tag.CONCLUSION:
        scan.stray()
        return
    elif scan.top in (Tag.PATH, Tag.GOAL, Tag.OUTLINE):
        index = scan.find(Tag.PARALLEL)
    else:
        if scan.top is Tag.PARALLEL:
            scan.close_to(len(scan.stack) - 2)
        if not scan.open_block():
            return
        index = len(scan.stack) - 1
    if scan.top is Tag.CONCLUSION and index == len(scan.stack) - 2:
        if not scan.empty():
            scan.stray()
            return
        scan.reopen("paths are still to come: <Conclusion> left out")
    scan.close_to(index)
    scan.need_goal(index)
    scan.accept(Tag.PATH)


def end_path(scan: Scan) -> None:
    outer = scan.find(Tag.PATH)
    block = scan.block()
    if scan.top is Tag.PATH or scan.top is Tag.CONCLUSION:
        if outer < 0:
            scan.stray()
        elif scan.stands_alone():
            scan.close_to(outer)
            scan.accept(Tag.END_PATH)
        else:
            scan.word()
    elif outer >= 0 and block and scan.top is Tag.PARALLEL and ends_inner(scan):
        scan.close_to(outer)
        scan.accept(Tag.END_PATH)
    else:
        scan.stray()


def ends_inner(scan: Scan) -> bool:
    """Whether a </Path> between the parts of a nested block ends the path around that block."""
    block = scan.stack[-1]
    if block.conclusion_end:
        return True
    wanted = (
        scan.wanting(scan.label_after(scan.following_end)) if scan.following is Tag.PATH else -1
    )
    return 0 <= wanted < len(scan.stack) - 1


def conclusion(scan: Scan) -> None:
    block = scan.block()
    if block is None or scan.top is Tag.CONCLUSION:
        scan.stray()
    elif scan.top is Tag.PARALLEL and block.conclusion_end:
        outer = scan.find(Tag.PATH)
        around = scan.stack[outer - 1] if outer >= 0 else None
        if around and around.path_count >= around.outline_count:
            scan.close_to(outer - 1)
            scan.accept(Tag.CONCLUSION)
        else:
            scan.reopen("the block has two conclusions: joined")
            scan.stray()
    elif (
        scan.top is not Tag.PARALLEL
        and not scan.stands_alone()
        and scan.following is not Tag.END_CONCLUSION
    ):
        scan.word()
    else:
        index = scan.find(Tag.PARALLEL)
        scan.close_to(index)
        scan.need_goal(index)
        scan.accept(Tag.CONCLUSION)


def end_conclusion(scan: Scan) -> None:
    if scan.top is not Tag.CONCLUSION:
        scan.stray()
    elif scan.stands_alone():
        scan.accept(Tag.END_CONCLUSION)
    else:
        scan.word()


RULES: dict[Tag, Rule] = {
    Tag.THINK: think,
    Tag.END_THINK: end_think,
    Tag.PARALLEL: parallel,
    Tag.END_PARALLEL: end_parallel,
    Tag.GOAL: goal,
    Tag.END_GOAL: end_goal,
    Tag.OUTLINE: outline,
    Tag.END_OUTLINE: end_outline,
    Tag.PATH: path,
    Tag.END_PATH: end_path,
    Tag.CONCLUSION: conclusion,
    Tag.END_CONCLUSION: end_conclusion,
}
