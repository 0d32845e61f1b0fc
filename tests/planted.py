"""Answers with a known fault, and ordinary ones without: what the flags must find and must leave
alone.

Refusals are written by hand. Those that are held out were written after the rules, to count how
many of unknown wordings are found: 60 of 63, and 40 of 44 after the rules had been extended. Then
the rules were extended for what was missed. All else is put together from parts that the rules do
not hold.
"""

import itertools
import random

PROMPT = "Write one sentence about this product photo for a web shop, and name its colour."
LONG_PROMPT = (
    "You are an assistant for a picture archive. Describe the given scene for a blind reader in "
    "two or three plain sentences. Start with the most important person or object, then the "
    "surroundings, then the light. Do not guess names, and do not mention the camera."
)

SUBJECTS = [
    "a brown terrier", "two elderly fishermen", "a red tractor", "a marching band", "a tabby cat",
    "a woman in a yellow raincoat", "three schoolchildren", "a steam locomotive", "a bowl of soup",
    "a street musician", "a flock of geese", "a wooden rowing boat", "a chef with a tall hat",
    "a bride and her father", "a skateboarder", "an old stone bridge", "a market stall",
    "a mountain biker", "a sleeping toddler", "a lighthouse keeper",
]  # fmt: skip
DOINGS = [
    "waits beside a narrow canal", "is seen from above", "moves through deep snow",
    "rests in the shade of an oak", "stands out against the evening light",
    "crosses a busy market square", "is half hidden by fog", "leans on a rusty railing",
    "shares the frame with a blue bicycle", "casts a long shadow over the sand",
    "appears in front of a tiled wall", "is surrounded by tall sunflowers",
]  # fmt: skip
DETAILS = [
    "The colours are warm, and the low sun throws orange streaks over the roofs.",
    'On the left, a hand-painted sign reads "I\'m sorry, we are closed".',
    "Behind it, rows of terraced houses climb a steep hill towards a church.",
    "A second figure, barely visible, looks away from the viewer.",
    "Puddles on the cobblestones mirror the lamps of a nearby café.",
    "The texture of the worn leather contrasts with the smooth glass of the window.",
    "Small birds, perhaps sparrows, pick at crumbs near the lower edge.",
    "Thin clouds drift over a pale sky, which takes up about a third of the view.",
    "It is not possible to read the number plate, because mud covers most of it.",
    "Somebody has left a striped scarf and a pair of gloves on the bench.",
    "The mood is calm, as if the day had only just begun.",
    "Far off, cranes and chimneys hint at a harbour.",
    "Red, green and white pennants hang from 12 poles along the quay.",
    "A clock on the tower shows 10:10, and the shutters below it are shut.",
    "Nothing suggests where exactly this is, though the plants look Mediterranean.",
]


def long_descriptions(count: int = 150) -> list[str]:
    """Ordinary descriptions of four to seven sentences."""
    draw = random.Random(4)
    made = []
    for _ in range(count):
        first, second = draw.sample(SUBJECTS, 2)
        opening = f"{first[0].upper()}{first[1:]} {draw.choice(DOINGS)}, while {second} "
        opening += f"{draw.choice(DOINGS)}."
        made.append(" ".join([opening, *draw.sample(DETAILS, draw.randint(3, 6))]))
    return made


def loops(count: int = 160) -> list[str]:
    """Phrases, sentences, words, syllables and list items again and again, mostly behind a good
    beginning, and cut off anywhere."""
    draw = random.Random(5)
    made = []
    for number in range(count):
        subject, doing, detail = draw.choice(SUBJECTS), draw.choice(DOINGS), draw.choice(DETAILS)
        beginning = f"{subject} {doing}"
        times = draw.randint(4, 12)
        kinds = [
            f"{beginning}, " + "and it is very nice, " * times,
            f"{beginning}. " + f"{detail} " * times,
            f"{beginning} next to " + f"{subject} and " * times,
            " ".join([subject.split()[-1]] * (times + 2)),
            f"{beginning} " + "of the " * times,
            f"{beginning}. It is ha" + "ha" * 3 * times,
            "".join(f"{place}. {subject}\n" for place in range(1, times + 1)),
            f"{beginning}, with " + ", ".join(["white clouds"] * times),
            "一只小猫坐在窗台上，" * times,
            f"{beginning}. The {subject.split()[-1]} is on the left. " * times,
            f"{subject}. " + "no" * 5 * times,
            f"{beginning} and {beginning}",
        ]
        text = kinds[number % len(kinds)].strip(" ,")
        cut = draw.randint(0, 3)
        made.append(text[: len(text) - cut])
    return made


REFUSALS = """\
I'm sorry, but I can't help with that.
I'm sorry, I can't assist with that request.
I cannot describe this image.
I can’t provide a description of this person.
Sorry, I am not able to identify people in photos.
As an AI language model, I cannot view pictures.
I apologize, but I'm unable to process this image.
Unfortunately, I am unable to see the picture you mention.
I do not feel comfortable describing this content.
I won't be able to caption this one.
This request violates our content policy.
The image goes against my safety guidelines, so I will stop here.
I must decline to describe this photograph.
No image was provided. Please upload one.
It seems that you forgot to attach the picture.
I don't see any image in your message.
Please share the image again so that I can describe it.
The image could not be loaded.
The picture failed to load, so there is nothing I can tell you.
My apologies, but this is not something I can do.
I'm just a text-based model and have no way to look at photos.
I was not designed to identify real people.
I'd rather not describe this.
I'm afraid I can't do that.
We are unable to fulfil this request at the moment.
I can't comply with this request.
I have to respectfully decline.
It would be inappropriate for me to describe this person.
Your prompt was flagged by the content filter.
Unable to process the image.
I'm not able to generate a caption for this image as it may contain sensitive content.
I regret that I cannot produce the description.
I am an AI assistant and cannot view images directly.
Sorry!
I'm sorry.
I do not have the ability to see images.
I'm going to have to pass on this one.
This goes beyond my capabilities.
Let's talk about something else.
I cannot and will not describe this scene.
Es tut mir leid, aber ich kann dieses Bild nicht beschreiben.
Als KI-Sprachmodell kann ich keine Bilder sehen.
Ich kann dir dabei leider nicht helfen.
Leider ist es mir nicht möglich, diese Person zu erkennen.
Bitte laden Sie das Bild noch einmal hoch.
Désolé, mais je ne peux pas décrire cette image.
En tant qu'intelligence artificielle, je ne peux pas voir de photos.
Je ne suis pas en mesure de répondre à cette demande.
Lo siento, pero no puedo ayudar con eso.
No puedo describir a esta persona.
Como modelo de lenguaje, no tengo acceso a imágenes.
Mi dispiace, ma non posso aiutarti con questa immagine.
Non sono in grado di identificare le persone.
Desculpe, mas não posso ajudar com isso.
Não consigo ver a imagem.
Het spijt me, maar ik kan deze afbeelding niet beschrijven.
Przepraszam, ale nie mogę opisać tego zdjęcia.
Извините, но я не могу описать это изображение.
对不起，我无法描述这张图片。
抱歉，我不能协助完成这个请求。
申し訳ありませんが、この画像を説明することはできません。
죄송하지만 이 이미지를 설명할 수 없습니다.
Üzgünüm, bu görüntüyü tanımlayamıyorum.""".splitlines()

HELD_OUT_REFUSALS = """\
I'm unable to assist with identifying the individual shown here.
Sorry, that's not something I'm able to talk about.
I can't really describe what's happening here, as it may be harmful.
I'm sorry, but I'm not comfortable describing explicit material.
Apologies, I cannot see the attachment.
I am sorry, however I cannot provide details about real people.
As a large language model, I don't have eyes and cannot see.
I'm not permitted to discuss this picture.
I will not describe this image because it depicts minors.
I would prefer not to answer.
I need to decline this request.
I cannot fulfill your request to describe the image.
I am programmed to be a harmless AI assistant.
This content may violate our usage policies.
There is no image attached to this conversation.
You haven't uploaded an image. Could you please upload it?
I did not receive an image. Please try sending it again.
The file appears to be corrupted and cannot be opened.
I'm having trouble viewing the image, so I can't describe it.
I don't have access to the image you are referring to.
I currently can't view images.
I'm unable to view or interpret images directly.
It's against my guidelines to comment on someone's appearance.
Describing this image would go against my ethical guidelines.
I'm really sorry, but I must refuse.
I cannot in good conscience caption this picture.
Sorry, but I can't continue with this.
Sorry, I can't do that for you.
I cannot determine who this person is.
I can't identify people from their faces, but the photo has a blue background.
I cannot engage with this type of content.
I have been instructed not to describe medical images.
I'm not going to describe that.
I could not find any image to describe.
We cannot process this picture right now.
Your request was rejected by the safety system.
The response was filtered.
No picture has been shared with me.
Regrettably, I'm not able to complete this task.
Thank you for the picture! However, I am not able to describe people in it.
Oh no, I can't look at this picture for you.
Unfortunately I can't see anything you attached.
I don't think I can help you with this one.
My programming doesn't allow me to describe this image.
Request denied.
Cannot describe the image.
Error: unable to decode image.
I am only an AI and do not see images.
Ich bin leider nicht in der Lage, dieses Foto zu beschreiben.
Entschuldigung, das kann ich nicht beschreiben.
Tut mir leid, dabei kann ich nicht behilflich sein.
Je regrette, il m'est impossible de décrire cette photo.
Malheureusement, aucune image n'a été fournie.
Disculpa, no me es posible describir la imagen.
Lamento no poder ayudarte con esta solicitud.
Purtroppo non posso descrivere questa immagine.
Infelizmente, não sou capaz de descrever a imagem.
Sorry, daar kan ik je niet mee helpen.
Niestety nie jestem w stanie pomóc.
К сожалению, я не могу помочь с этим запросом.
很抱歉，我没有办法查看图片。
すみませんが、その画像についてはお答えできません。
죄송합니다. 이 요청은 도와드릴 수 없습니다.""".splitlines()


def echoes() -> list[tuple[str, str]]:
    """Answers that repeat the prompt or a piece of it, with the prompt."""
    made = []
    for number, (subject, doing) in enumerate(itertools.product(SUBJECTS, DOINGS[:6])):
        prompt = LONG_PROMPT if number % 2 else PROMPT
        caption = f"{subject} {doing}."
        pieces = prompt.split(". ")
        piece = max(pieces, key=len)
        kinds = [
            f"{prompt} {caption}",
            f"{prompt}",
            f"User: {prompt}\nAssistant: {caption}",
            f"{caption} {prompt}",
            f"{piece.upper()} - {caption}",
            f'You asked me: "{prompt}" Here it is: {caption}',
        ]
        made.append((kinds[number % len(kinds)], prompt))
    return made


def nothings() -> list[str]:
    """Answers that say nothing."""
    marks = [
        "",
        " ",
        "\n\n",
        ".",
        "...",
        "…",
        "-",
        "---",
        '""',
        "''",
        "```",
        "```\n```",
        "**",
        "[]",
    ]
    marks += ["{}", "()", "?", "!?", "_", "<>", "\u200b", "•", "。", "「」", "1."[1:], "\t", "||"]
    words = ["None", "null", "N/A", "n/a", "Caption:", "nan", "Untitled", "unknown", "no caption"]
    words += ["Description", "undefined", "TODO", "No description"]
    around = ["{}", ' "{}"', "{}.", "*{}*", "[{}]", "{}\n"]
    return marks + [form.format(word) for form in around for word in words]


def thoughts() -> list[str]:
    """Answers with reasoning in them; the caption is CAPTION where there is one."""
    tags = [
        ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"),
        ("[THINK]", "[/THINK]"), ("<thought>", "</thought>"), ("<scratchpad>", "</scratchpad>"),
        ("<reflection>", "</reflection>"), ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<seed:think>", "</seed:think>"),
        ("<analysis>", "</analysis>"), ("<Think>", "</Think>"),
    ]  # fmt: skip
    thinking = [
        "The user wants a caption.\n\nI see a dog. Or a wolf? Probably a dog.",
        "Let me look at it: 1. a beach 2. a ball. < 3 people.",
        "Hmm, the colours <b>may</b> be off. So: keep it short.",
    ]
    made = []
    for (start, end), text in itertools.product(tags, thinking):
        made += [f"{start}{text}{end}\n\n{CAPTION}", f"{start}\n{text}\n{end}{CAPTION}"]
        made.append(f"{text}{end} {CAPTION}")  # the prompt had opened it
    made.append(
        "<|channel|>analysis<|message|>A dog?<|end|><|start|>assistant<|channel|>final<|message|>"
        + CAPTION
    )
    made.append(f"<think>One.</think><answer>{CAPTION}</answer>")
    return made


CAPTION = "A dog runs along the beach."

# The same scenes in many languages, written by hand: (language, texts).
TRANSLATED: dict[str, list[str]] = {
    "en": [
        "A brown dog runs along the beach with a ball in its mouth.",
        "Two women are sitting at a table in front of a café.",
        "A young boy in a red shirt climbs over the rocks.",
        "The old church stands on a hill above the village.",
        "Several cars are parked along the wet street at night.",
    ],
    "de": [
        "Ein brauner Hund läuft mit einem Ball im Maul am Strand entlang.",
        "Zwei Frauen sitzen an einem Tisch vor einem Café.",
        "Ein kleiner Junge in einem roten Hemd klettert über die Felsen.",
        "Die alte Kirche steht auf einem Hügel über dem Dorf.",
        "Mehrere Autos parken nachts an der nassen Straße.",
    ],
    "fr": [
        "Un chien brun court le long de la plage avec une balle dans la gueule.",
        "Deux femmes sont assises à une table devant un café.",
        "Un jeune garçon en chemise rouge grimpe sur les rochers.",
        "La vieille église se dresse sur une colline au-dessus du village.",
        "Plusieurs voitures sont garées le long de la rue mouillée la nuit.",
    ],
    "es": [
        "Un perro marrón corre por la playa con una pelota en la boca.",
        "Dos mujeres están sentadas a una mesa delante de una cafetería.",
        "Un niño con una camisa roja trepa por las rocas.",
        "La vieja iglesia está en una colina sobre el pueblo.",
        "Varios coches están aparcados de noche en la calle mojada.",
    ],
    "it": [
        "Un cane marrone corre lungo la spiaggia con una palla in bocca.",
        "Due donne sono sedute a un tavolo davanti a un bar.",
        "Un bambino con una camicia rossa si arrampica sulle rocce.",
        "La vecchia chiesa si trova su una collina sopra il paese.",
        "Diverse macchine sono parcheggiate di notte lungo la strada bagnata.",
    ],
    "pt": [
        "Um cachorro marrom corre pela praia com uma bola na boca.",
        "Duas mulheres estão sentadas a uma mesa em frente a um café.",
        "Um menino de camisa vermelha sobe nas rochas.",
        "A velha igreja fica numa colina acima da aldeia.",
        "Vários carros estão estacionados à noite na rua molhada.",
    ],
    "nl": [
        "Een bruine hond rent over het strand met een bal in zijn bek.",
        "Twee vrouwen zitten aan een tafel voor een café.",
        "Een jongetje in een rood shirt klimt over de rotsen.",
        "De oude kerk staat op een heuvel boven het dorp.",
        "Er staan 's nachts meerdere auto's langs de natte straat.",
    ],
    "sv": [
        "En brun hund springer längs stranden med en boll i munnen.",
        "Två kvinnor sitter vid ett bord framför ett kafé.",
        "En liten pojke i röd skjorta klättrar över klipporna.",
        "Den gamla kyrkan står på en kulle ovanför byn.",
        "Flera bilar står parkerade längs den våta gatan på natten.",
    ],
    "da": [
        "En brun hund løber langs stranden med en bold i munden.",
        "To kvinder sidder ved et bord foran en café.",
        "En lille dreng i en rød skjorte klatrer over klipperne.",
        "Den gamle kirke står på en bakke over landsbyen.",
        "Flere biler holder parkeret langs den våde gade om natten.",
    ],
    "fi": [
        "Ruskea koira juoksee rannalla pallo suussaan.",
        "Kaksi naista istuu pöydän ääressä kahvilan edessä.",
        "Punapaitainen pikkupoika kiipeää kallioiden yli, ja hän katsoo alas.",
        "Vanha kirkko seisoo kukkulalla kylän yläpuolella.",
        "Useita autoja on pysäköity märän kadun varrelle, ja on yö.",
    ],
    "pl": [
        "Brązowy pies biegnie po plaży z piłką w pysku.",
        "Dwie kobiety siedzą przy stole przed kawiarnią.",
        "Mały chłopiec w czerwonej koszulce wspina się na skały.",
        "Stary kościół stoi na wzgórzu nad wioską.",
        "Kilka samochodów stoi nocą przy mokrej ulicy.",
    ],
    "cs": [
        "Hnědý pes běží po pláži s míčem v tlamě.",
        "Dvě ženy sedí u stolu před kavárnou.",
        "Malý chlapec v červené košili leze přes skály.",
        "Starý kostel stojí na kopci nad vesnicí.",
        "Několik aut parkuje v noci na mokré ulici.",
    ],
    "tr": [
        "Kahverengi bir köpek ağzında bir topla sahilde koşuyor.",
        "İki kadın bir kafenin önünde bir masada oturuyor.",
        "Kırmızı gömlekli küçük bir çocuk kayalara tırmanıyor.",
        "Eski kilise köyün üstünde bir tepede duruyor.",
        "Gece ıslak sokakta birkaç araba park etmiş.",
    ],
    "ru": [
        "Коричневая собака бежит по пляжу с мячом в зубах.",
        "Две женщины сидят за столом перед кафе.",
        "Маленький мальчик в красной рубашке лезет на скалы.",
        "Старая церковь стоит на холме над деревней.",
        "Несколько машин стоят ночью на мокрой улице.",
    ],
    "el": ["Ένας καφέ σκύλος τρέχει στην παραλία.", "Δύο γυναίκες κάθονται σε ένα τραπέζι."],
    "ar": ["كلب بني يركض على الشاطئ مع كرة.", "امرأتان تجلسان على طاولة أمام مقهى."],
    "he": ["כלב חום רץ לאורך החוף עם כדור בפיו.", "שתי נשים יושבות ליד שולחן."],
    "hi": ["एक भूरा कुत्ता समुद्र तट पर दौड़ रहा है।", "दो महिलाएँ मेज पर बैठी हैं।"],
    "zh": ["一只棕色的狗叼着球在海滩上奔跑。", "两个女人坐在咖啡馆前的桌子旁。"],
    "ja": ["茶色い犬がボールをくわえて浜辺を走っている。", "二人の女性がカフェの前に座っている。"],
    "ko": ["갈색 개가 공을 물고 해변을 달리고 있다.", "두 여자가 카페 앞 탁자에 앉아 있다."],
    "vi": ["Một con chó nâu chạy dọc bãi biển với quả bóng trong miệng."],
    "id": ["Seekor anjing coklat berlari di pantai dengan bola di mulutnya."],
    "hu": ["Egy barna kutya fut a parton egy labdával a szájában."],
    "ro": ["Un câine maro aleargă pe plajă cu o minge în gură."],
    "uk": ["Коричневий собака біжить по пляжу з м'ячем у зубах."],
}


def foreign() -> list[tuple[str, str]]:
    """Texts with a wanted language that is not theirs."""
    return [
        (text, wanted)
        for wanted in ("en", "de", "fr", "es", "it", "pl", "ru", "ja", "zh")
        for language, texts in TRANSLATED.items()
        for text in texts
        if language != wanted
    ]


def native() -> list[tuple[str, str]]:
    return [(text, language) for language, texts in TRANSLATED.items() for text in texts]


# Written after the detector had been changed for those above.
MORE_HELD_OUT_REFUSALS = """\
I'm sorry, but describing this person isn't something I can do.
Sorry, I am unable to look at that.
I can't give you a caption for this.
I am not allowed to describe the people in this photo.
I don't feel comfortable captioning this image.
As an AI, I don't have the capability to view photographs.
Being an AI model, I cannot open files.
I apologize, I can't process that picture.
I won't describe this, because it shows violence.
Unfortunately, I can't make out any picture here.
I do not see an image. Could you attach it again?
There doesn't seem to be an image attached to your message.
Could you please upload the photo? Nothing was attached.
The attached file couldn't be opened.
The photo did not load on my side.
I cannot access external links or images.
I'm not able to open URLs.
My guidelines prevent me from describing this image.
OpenAI's policies do not allow me to identify this man.
That would violate the community guidelines.
I decline to answer.
I respectfully decline to caption this photograph.
I'm sorry, this picture cannot be described.
Sorry, but no.
I am afraid that I am not able to describe this picture.
I cannot say who is in this photo.
I'm unable to tell what the picture shows.
I have no image to look at.
I can only describe images that follow the safety guidelines.
I can't help you describe this one, but I can help with another picture.
This image cannot be processed due to safety restrictions.
The content of this image is not appropriate for me to describe.
Sorry, something went wrong and I couldn't view the image.
I'm sorry for the inconvenience, but I can't caption images of children.
I prefer not to comment on this picture.
It's not possible for me to describe this image.
Ich kann keine Angaben zu dieser Person machen.
Leider kann ich das Bild nicht öffnen.
Je ne peux pas vous aider.
No puedo ver ninguna imagen.
Non posso fornire una descrizione.
Não posso descrever esta pessoa.
我不能描述这个人。
この画像は表示できません。""".splitlines()
