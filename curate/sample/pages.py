"""Screenshots, documents and a placeholder drawn with Pillow alone, for the built-in sample."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from curate.sample.canvas import (
    PALETTES,
    WHITE,
    WORDS,
    blend,
    canvas,
    font,
    paper_colour,
    paragraph,
    phrase,
)


def screenshot(chosen: random.Random) -> Image.Image:
    """Return one drawn screen: a terminal, an editor, a page, a dialog, a table or a phone."""
    layout = chosen.choice((_terminal, _editor, _web_page, _dialog, _spreadsheet, _phone))
    aspect = (1.5, 2.0) if layout is _phone else (0.55, 0.75)
    long_side = (170, 230) if layout is _phone else (360, 520)
    image, draw, width, height = canvas(chosen, long_side, aspect)
    accent = chosen.choice(chosen.choice(PALETTES[:4]))
    layout(draw, width, height, accent, chosen)
    return image.reduce(2)


def document(chosen: random.Random) -> Image.Image:
    """Return one page: letter, paper in columns, form or receipt; at times askew, as if scanned."""
    image, draw, width, height = canvas(chosen, (260, 360), (1.2, 1.5))
    paper = paper_colour(chosen) if chosen.random() < 0.6 else (chosen.randint(205, 240),) * 3
    draw.rectangle((0, 0, width, height), fill=paper)
    ink = (chosen.randint(0, 70),) * 3
    layout = chosen.choice((_letter, _columns, _columns, _form, _receipt))
    layout(draw, width, height, ink, chosen)
    if chosen.random() < 0.4:
        image = image.rotate(chosen.uniform(-4, 4), Image.Resampling.BILINEAR, fillcolor=paper)
    if chosen.random() < 0.4:
        share = chosen.uniform(0.35, 0.7)
        x = chosen.uniform(0, 1 - share) * width
        y = chosen.uniform(0, 1 - share) * height / 2
        image = image.crop((round(x), round(y), round(x + share * width), round(y + share * width)))
    return image.reduce(2)


def placeholder(text: str = "image not available") -> Image.Image:
    """Return the grey picture that a host serves in place of one that is gone."""
    image = Image.new("RGB", (640, 480), (225, 228, 232))
    draw = ImageDraw.Draw(image)
    draw.rectangle((240, 120, 400, 240), outline=(150, 155, 160), width=8)
    draw.polygon(((252, 232), (300, 170), (335, 210), (358, 188), (390, 232)), fill=(150, 155, 160))
    draw.ellipse((350, 138, 376, 164), fill=(150, 155, 160))
    draw.text((320, 320), text, (120, 125, 130), font(40), anchor="mm")
    return image.reduce(2)


# Screenshots


def _bar(draw, width, colour, title, ink) -> None:
    draw.rectangle((0, 0, width, 40), fill=colour)
    for i, dot in enumerate(((255, 95, 86), (255, 189, 46), (39, 201, 63))):
        draw.ellipse((14 + 28 * i, 12, 30 + 28 * i, 28), fill=dot)
    draw.text((width / 2, 20), title, ink, font(20), anchor="mm")


def _terminal(draw, width, height, accent, chosen) -> None:
    back = chosen.choice(((0, 0, 0), (30, 30, 40), (0, 43, 54), (48, 10, 36)))
    ink = chosen.choice(((220, 220, 220), (80, 250, 123), (255, 200, 90)))
    draw.rectangle((0, 0, width, height), fill=back)
    for i in range(chosen.randint(6, height // 28)):
        prompt = chosen.random() < 0.25
        colour = blend(accent, WHITE, 0.4) if prompt else ink
        text = ("$ " if prompt else "") + phrase(chosen, 1, 9)
        draw.text((14, 52 + 28 * i), text, colour, font(22))
    _bar(draw, width, (70, 70, 76), chosen.choice(WORDS), WHITE)


def _editor(draw, width, height, accent, chosen) -> None:
    dark = chosen.random() < 0.6
    back, ink = ((40, 44, 52), (190, 195, 205)) if dark else ((252, 252, 252), (50, 50, 60))
    draw.rectangle((0, 0, width, height), fill=back)
    side = chosen.randint(120, 260)
    draw.rectangle((0, 40, side, height), fill=blend(back, (128, 128, 128), 0.2))
    colours = (ink, ink, accent, (198, 120, 221), (152, 195, 121), (209, 154, 102))
    for i in range((height - 60) // 28):
        y = 52 + 28 * i
        if i % 2 == 0:
            draw.text((16, y), chosen.choice(WORDS), ink, font(20))
        x = side + 20 + 34 * chosen.randint(0, 4)
        for word in phrase(chosen, 0, 7).split():
            draw.text((x, y), word, chosen.choice(colours), font(21))
            x += font(21).getlength(word) + 9
    _bar(draw, width, blend(back, (128, 128, 128), 0.35), chosen.choice(WORDS), ink)


def _web_page(draw, width, height, accent, chosen) -> None:
    _bar(draw, width, (222, 225, 230), "", (0, 0, 0))
    draw.rounded_rectangle((110, 6, width - 20, 34), 12, fill=WHITE)
    banner = chosen.randint(110, 240)
    draw.rectangle((0, 40, width, banner), fill=accent)
    draw.text((30, 60), phrase(chosen, 1, 3).capitalize(), WHITE, font(chosen.randint(34, 52)))
    columns = chosen.randint(1, 4)
    wide = (width - 40) / columns
    for i in range(columns):
        x, y = 20 + i * wide, banner + 24
        if chosen.random() < 0.7:
            shade = blend(chosen.choice(chosen.choice(PALETTES)), WHITE, 0.5)
            draw.rounded_rectangle((x, y, x + wide - 20, y + wide * 0.45), 8, fill=shade)
            y += wide * 0.45 + 14
        paragraph(draw, (x, y, x + wide - 20, height - 20), (70, 70, 75), 20, chosen)


def _dialog(draw, width, height, accent, chosen) -> None:
    draw.rectangle((0, 0, width, height), fill=blend(accent, (60, 90, 120), 0.6))
    for _ in range(chosen.randint(3, 12)):
        x, y = chosen.randint(0, width - 60), chosen.randint(0, height - 60)
        draw.rounded_rectangle((x, y, x + 52, y + 52), 10, fill=chosen.choice(PALETTES[0]))
    wide, high = chosen.uniform(0.45, 0.8) * width, chosen.uniform(0.4, 0.75) * height
    x, y = chosen.uniform(0, width - wide), chosen.uniform(0, height - high)
    draw.rounded_rectangle((x, y, x + wide, y + high), 12, fill=(240, 240, 242))
    draw.rectangle((x, y + 14, x + wide, y + 44), fill=accent)
    draw.text((x + 16, y + 28), phrase(chosen, 1, 3).title(), WHITE, font(22), anchor="lm")
    for row in range(chosen.randint(1, 6)):
        top = y + 64 + 40 * row
        if top + 90 < y + high:
            draw.text((x + 20, top + 14), chosen.choice(WORDS), (40, 40, 40), font(20), anchor="lm")
            draw.rectangle(
                (x + wide * 0.4, top, x + wide - 20, top + 28), fill=WHITE, outline=accent
            )
    for i, word in enumerate(("OK", "Cancel")):
        corner = (x + wide - 130 * (i + 1), y + high - 50)
        draw.rounded_rectangle((*corner, corner[0] + 110, corner[1] + 36), 6, fill=accent)
        draw.text((corner[0] + 55, corner[1] + 18), word, WHITE, font(20), anchor="mm")


def _spreadsheet(draw, width, height, accent, chosen) -> None:
    draw.rectangle((0, 0, width, 70), fill=accent)
    draw.text((20, 34), phrase(chosen, 1, 3).title(), WHITE, font(26), anchor="lm")
    wide, high = chosen.randint(90, 180), chosen.randint(30, 46)
    for i, y in enumerate(range(70, height, high)):
        for x in range(0, width, wide):
            shade = (232, 236, 240) if i == 0 or x == 0 else WHITE
            draw.rectangle((x, y, x + wide, y + high), fill=shade, outline=(205, 208, 212))
            if i == 0 or x == 0:
                draw.text(
                    (x + 8, y + high / 2),
                    chosen.choice(WORDS),
                    (60, 60, 60),
                    font(20),
                    anchor="lm",
                )
            elif chosen.random() < 0.75:
                number = f"{chosen.uniform(0, 9999):.2f}"
                draw.text((x + wide - 8, y + high / 2), number, (30, 30, 30), font(20), anchor="rm")


def _phone(draw, width, height, accent, chosen) -> None:
    draw.rectangle((0, 0, width, height), fill=(246, 247, 249))
    draw.rectangle((0, 0, width, 76), fill=accent)
    draw.text((20, 50), chosen.choice(WORDS).title(), WHITE, font(28), anchor="lm")
    row = chosen.randint(60, 130)
    chat = chosen.random() < 0.5
    for y in range(90, height - row, row + 10):
        if chat:
            mine, wide = chosen.random() < 0.5, chosen.uniform(0.35, 0.75) * width
            x = width - wide - 14 if mine else 14
            fill = blend(accent, WHITE, 0.65) if mine else (225, 227, 230)
            draw.rounded_rectangle((x, y, x + wide, y + row), 18, fill=fill)
            paragraph(draw, (x + 14, y + 10, x + wide - 10, y + row), (30, 30, 30), 20, chosen)
        else:
            draw.ellipse((14, y, 14 + row * 0.7, y + row * 0.7), fill=chosen.choice(PALETTES[3]))
            paragraph(draw, (row, y, width - 14, y + row * 0.8), (50, 50, 50), 20, chosen)


# Documents


def _letter(draw, width, height, ink, chosen) -> None:
    margin, size = chosen.randint(30, 80), chosen.randint(16, 28)
    draw.text((margin, margin), phrase(chosen, 1, 3).title(), ink, font(size + 12))
    y = margin + chosen.randint(60, 160)
    while y < height - margin - 2 * size:
        y = paragraph(draw, (margin, y, width - margin, height - margin), ink, size, chosen)
        y += size * 1.2


def _columns(draw, width, height, ink, chosen) -> None:
    margin, size, count = chosen.randint(24, 60), chosen.randint(12, 19), chosen.choice((2, 2, 3))
    draw.text((width / 2, margin), phrase(chosen, 2, 5).title(), ink, font(30), anchor="mt")
    wide = (width - 2 * margin) / count
    for i in range(count):
        x, y = margin + i * wide, margin + 60
        while y < height - margin - 2 * size:
            if chosen.random() < 0.2 and y + wide * 0.6 < height - margin:
                shade = blend(chosen.choice(chosen.choice(PALETTES)), WHITE, 0.3)
                draw.rectangle((x, y, x + wide - 16, y + wide * 0.55), fill=shade, outline=ink)
                y += wide * 0.55 + 14
            y = paragraph(draw, (x, y, x + wide - 16, height - margin), ink, size, chosen) + size


def _form(draw, width, height, ink, chosen) -> None:
    margin, high = chosen.randint(24, 60), chosen.randint(34, 60)
    draw.text((margin, margin), phrase(chosen, 2, 3).upper(), ink, font(26))
    columns = chosen.randint(2, 5)
    wide = (width - 2 * margin) / columns
    for y in range(margin + 60, height - margin - high, high):
        for i in range(columns):
            x = margin + i * wide
            draw.rectangle((x, y, x + wide, y + high), outline=ink, width=2)
            if chosen.random() < 0.7:
                draw.text((x + 8, y + high / 2), chosen.choice(WORDS), ink, font(18), anchor="lm")


def _receipt(draw, width, height, ink, chosen) -> None:
    inset, size = chosen.randint(10, width // 5), chosen.randint(20, 30)
    draw.text((width / 2, 24), phrase(chosen, 1, 2).upper(), ink, font(36), anchor="mt")
    for y in range(90, height - 60, round(size * 1.5)):
        draw.text((inset, y), phrase(chosen, 1, 2), ink, font(size))
        price = f"{chosen.uniform(0.5, 300):.2f}"
        draw.text((width - inset, y), price, ink, font(size), anchor="ra")
    for x in range(inset, width - inset, 8):
        draw.line((x, height - 46, x, height - 12), fill=ink, width=chosen.choice((1, 3, 5)))
