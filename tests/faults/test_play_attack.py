"""Players play on whatever else connects; ``tools/attack_play.py`` does it a thousand times, and takes the time."""

import asyncio

from support.fault_tools import wait_until
from support.hostile import KINDS, attack
from support.play import Page, make_table, serving

from worldvq.play import security


def test_a_player_plays_on_under_attack_and_others_are_let_in_after_it(monkeypatch, capfd):
    monkeypatch.setattr(security, "REQUEST_SECONDS", 1.0)
    table = make_table()
    with serving(table) as port:
        with Page(port) as page:

            async def both():
                attacking = asyncio.create_task(attack(f"http://127.0.0.1:{port}/", 5 * len(KINDS), 30))
                steps = 0
                while not attacking.done():
                    header, _ = await asyncio.to_thread(page.ask, kind="act", action=steps % 3)
                    steps += 1
                    assert header["step"] == steps
                    await asyncio.sleep(0.02)  # a toy answers faster than a player may ask
                return attacking.result(), steps

            ended, steps = asyncio.run(both())
        assert sum(ended.values()) == 5 * len(KINDS) and steps > 5
        for kind in ("message_flood", "ping_flood", "huge_frame", "huge_body", "endless_headers", "silence"):
            assert ended[kind, "still open in the end"] == 0, ended
        wait_until(lambda: table.players == 0, 30)
        with Page(port) as page:
            assert page.ask(kind="act", action=0)[0]["step"] == 1
    assert capfd.readouterr().err == ""
