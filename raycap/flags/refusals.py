"""Finds answers in which a model declines, or says that it sees no picture."""

import re

from raycap.flags.words import plain, unquoted

# A refusal stands at the beginning of an answer.
LETTERS_READ = 500

_TASKS = (
    r"(?:help|assist|aid|describe|caption|provide|identify|comply|view|see|process|analy[sz]e|"
    r"generate|create|do (?:that|this|so|it|what)|fulfill?|continue|discuss|engage|produce|answer|"
    r"respond|complete|support|write|access|open|load|read|make out|recogni[sz]e|tell|determine|"
    r"comment|participate|share|offer|interpret|look at|display|give|proceed|satisfy|carry out|"
    r"go along|accommodate|say|name|talk|examine|inspect|evaluate|perform|handle|deliver|supply|"
    r"present|output|go into|go ahead|take part|work with|label|be of|get into|fetch|retrieve)"
)
_NOT = r"(?:not|n't|t)"
_CONTENT = r"(?:content|usage|use|safety|community|ethical|ethics|my|our|moderation|acceptable)"
_PICTURE = r"(?:images?|pictures?|photos?|photographs?|attachments?|files?|screenshots?|visuals?)"
_LIGHT = r"(?:\w+ ){0,3}?"

_ENGLISH = (
    # I cannot describe this.
    rf"\b(?:i|we)(?: am| are|'m|'re)? {_LIGHT}(?:cannot|can not|can't|cant|could not|couldn't|"
    rf"won't|will not|wouldn't|would not|don't|do not) {_LIGHT}{_TASKS}\b",
    r"\b(?:i|we)(?: am| are|'m|'re) (?:\w+ ){0,2}?(?:unable|not able|not allowed|not permitted|"
    r"not in a position|not comfortable|not authori[sz]ed|not going to|incapable|not capable|"
    r"prohibited|prevented|restricted|forbidden|not equipped|not designed|not programmed|"
    r"uncomfortable|not willing|unwilling|not at liberty)\b",
    r"\b(?:i|we)(?: would|'d|'ll| will|'ve|'m| am| have)? (?:\w+ ){0,3}?(?:must|need to|have to|"
    r"going to|choose to|like to|had to|prefer to|got to|respectfully|politely) "
    r"(?:\w+ ){0,3}?(?:decline|refuse|pass on|pass|refrain|abstain|turn (?:this|that) down|"
    r"say no|stop here)\b",
    r"\b(?:i|we)(?:'d| would|'ll| will)? (?:rather|prefer) not\b",
    r"\bi (?:respectfully |politely )?(?:decline|refuse)\b",
    r"\b(?:i|we)(?:'m| am| are|'re)? (?:\w+ )?(?:don't|do not|"
    r"doesn't) (?:feel comfortable|have the "
    r"(?:ability|capability|capacity|means|tools)|have (?:vision|visual|image)|support)",
    r"\bi lack the (?:ability|capability|capacity|means)\b",
    # As an AI.
    r"\b(?:as|being|i am|i'm) (?:just |only |merely |simply )?an? (?:\w+[ -]){0,2}?(?:ai\b|a\.i\.|"
    r"artificial intelligence|language model|llm\b|assistant\b|chatbot|text[- ](?:based|only) "
    r"(?:model|ai|assistant))",
    r"\bi (?:was|am|have been) (?:\w+ )?(?:designed|programmed|trained|built|instructed) (?:not )?"
    r"to\b",
    # I'm sorry, but ...
    r"^\W*(?:\w+[,!.]? )?(?:i'm|i am|we're|we are)? ?(?:\w+ )?(?:sorry|apologies|apologi[sz]e|"
    r"regret|afraid|unfortunately|regrettably)\b.{0,120}?\b(?:can ?not|can't|cant|unable|not able|"
    r"won't|not possible|impossible|isn't something|not something|no (?:image|picture|photo)|"
    r"not (?:comfortable|allowed|permitted)|decline|don't|do not|didn't|couldn't|outside|beyond|"
    r"against|inappropriate|missing|failed)\b",
    r"^\W*(?:(?:i'm|i am) (?:\w+ )?sorry|sorry|(?:my )?apologies|i apologi[sz]e)\W*$",
    # It is not allowed.
    rf"\b{_CONTENT}\W+(?:\w+\W+){{0,2}}?(?:polic(?:y|ies)|guidelines?|terms|principles|standards|"
    r"restrictions)\b",
    r"\b(?:request|content|prompt|response|output|answer|query|caption|description)\b"
    r"[^.]{0,30}\b(?:blocked|flagged|rejected|filtered|denied|refused|withheld|declined|"
    r"not (?:allowed|permitted|available)|cannot be (?:fulfilled|completed|processed|generated|"
    r"provided|produced|displayed|shown))\b",
    r"\b(?:inappropriate|not (?:be )?appropriate|unethical|against my \w+) (?:\w+ ){0,3}?to "
    r"(?:describe|caption|comment|provide|identify|generate)\b",
    r"\b(?:beyond|outside|not within|exceeds) (?:\w+ ){0,3}?(?:my|"
    r"our) (?:\w+ )?(?:capabilit|abilit|"
    r"scope|remit|skills|limits|competence)",
    r"\b(?:is|this is|that is|that's|it's) (?:simply )?not something (?:that )?(?:i|we)\b",
    r"\bcan(?: ?not|'t) be (?:described|captioned) (?:by me|here)\b",
    r"\b(?:let's|can we|could we|how about we) (?:\w+ ){0,2}?(?:talk about|"
    r"discuss|focus on|change|"
    r"switch|move on)",
    r"^\W*(?:unable|not able|failed|refusing|refuse|impossible|not possible|cannot|can't|error)\W"
    r"(?:\w+\W+){0,4}?(?:process|describe|caption|view|load|analy[sz]e|access|open|read|comply|"
    r"assist|generate|identify|help|display|decode|see)\b",
    r"\b(?:does not|doesn't|do not|don't|won't|will not|cannot|can't) (?:allow|permit|let|enable|"
    r"authori[sz]e) (?:me|us|this)\b",
    r"^\W*(?:error|failure|warning|notice|sorry)\W+.{0,30}\b(?:unable|failed|cannot|can't|"
    r"could not|couldn't|not supported|unsupported|invalid)\b",
    r"\b(?:im|not )possible for (?:me|us) to\b",
    r"^\W*(?:(?:i'm|i am) )?(?:sorry|apologies)\W+(?:but )?no\b",
    # There is no picture.
    rf"\b(?:i|we) have no (?:\w+ )?{_PICTURE}\b",
    rf"\bthere (?:doesn't|does not|don't|isn't|is not|aren't) (?:\w+ ){{0,4}}?(?:an|any|a) "
    rf"(?:\w+ )?{_PICTURE} (?:\w+ ){{0,2}}?(?:attached|provided|uploaded|shared|included|here)\b",
    rf"\b(?:forgot|forgotten|neglected|omitted) (?:\w+ ){{0,3}}?(?:attach|upload|include|add|send|"
    rf"share|provide)\b.{{0,30}}\b{_PICTURE}\b",
    rf"\b(?:couldn't|could not|unable to|failed to) (?:find|see|locate|detect|get|retrieve) "
    rf"(?:an|any|the|your|a) (?:\w+ )?{_PICTURE}\b",
    rf"\b(?:no|any) {_PICTURE} (?:\w+ ){{0,3}}?(?:provided|attached|uploaded|"
    rf"included|shared|given|"
    r"found|available|loaded|received|detected|supplied|submitted|present|here|sent)\b",
    rf"\b(?:don't|do not|didn't|did not|can't|cannot|haven't|"
    rf"have not) (?:\w+ ){{0,2}}?(?:see|have|"
    rf"receive|received|get|find|detect|view|notice|access)(?: to)? (?:an|"
    rf"any|the|your|a|this|that) "
    rf"(?:\w+ )?{_PICTURE}\b",
    rf"\bplease (?:\w+ ){{0,3}}?(?:upload|provide|share|attach|send|resend|"
    rf"re-?upload|reattach|try|"
    rf"submit|include|check)\b[^.]{{0,40}}?\b(?:{_PICTURE}|it|again|link)\b",
    rf"\b{_PICTURE}\b[^.]{{0,40}}?\b(?:could not|couldn't|cannot|can't|failed to|fails to|did not|"
    r"didn't|does not|doesn't|won't|wasn't|was not|unable to) (?:seem to |appear to )?(?:be )?"
    r"(?:load(?:ed)?|display(?:ed)?|process(?:ed)?|analy[sz]ed?|open(?:ed)?|read|"
    r"access(?:ed|ible)?|render(?:ed)?|viewed|come through|came through|decoded|attached|"
    r"uploaded|received)\b",
    rf"\b(?:there is|there's|there seems to be|there appears to be|i see|it seems|it looks like|"
    rf"it appears) (?:\w+ ){{0,6}}?(?:no|without|forgot|missing) (?:\w+ ){{0,4}}?{_PICTURE} "
    r"(?:\w+ ){0,4}?(?:attached|provided|uploaded|shared|included|in (?:your|this|our) (?:message|"
    r"chat|conversation|request)|to (?:describe|caption|analy[sz]e|look at))",
)

_OTHERS = (
    # German
    r"\b(?:ich|wir) (?:kann|können|darf|dürfen|werde|möchte|will) (?:[\w,]+ ){0,10}?"
    r"(?:nicht|keine?n?|leider)\b",
    r"\b(?:das|dies|dabei|daran|hierbei|leider|damit)? ?(?:kann|darf|möchte|werde) ich "
    r"(?:[\w,]+ ){0,8}?(?:nicht|keine?n?)\b",
    r"\btut (?:mir|uns) (?:\w+ )?leid\b",
    r"\bals (?:eine? )?(?:ki\b|künstliche intelligenz|\w*sprachmodell|ki-\w+)",
    r"\bnicht in der lage\b.{0,60}\b(?:zu|bild)\b",
    r"\b(?:verstößt|widerspricht) (?:[\w]+ ){0,3}?(?:richtlinie|nutzungsbedingung|gegen)",
    r"\b(?:kein|keine) (?:bild|foto|datei|bilder)\b[^.]{0,40}\b(?:angehängt|erhalten|hochgeladen|"
    r"sehen|gefunden|beigefügt|gesendet|vorhanden|empfangen)",
    r"\bbitte (?:\w+ ){0,4}?(?:laden?|stellen|senden|schicken?)\b[^.]{0,40}\b(?:bild|foto)",
    r"^\W*(?:leider|entschuldigung|verzeihung)\b.{0,80}\b(?:nicht|kein|unmöglich)",
    # French
    r"\bje (?:ne |n')(?:\w+ )?(?:peux|suis|puis|veux|pourrai|souhaite|vois|dispose|saurais|ai|"
    r"parviens)\b",
    r"\b(?:désolée?|je regrette|malheureusement|navrée?|"
    r"toutes mes excuses)\b.{0,80}\b(?:ne|n'|pas|"
    r"impossible)",
    r"\b(?:en tant qu'|je suis une )(?:ia\b|intelligence|assistant|modèle)",
    r"\ben tant que modèle\b",
    r"\baucune (?:image|photo)\b[^.]{0,40}\b(?:fournie|jointe|reçue|trouvée|téléchargée|partagée)",
    r"\bil m'est impossible\b",
    # Spanish
    r"\b(?:lo siento|disculp\w+|lamento|lamentablemente|perdón|desafortunadamente)\b.{0,80}\bno\b",
    r"\bno (?:puedo|podemos|podré|soy capaz|estoy en condiciones|me es posible|me siento)\b",
    r"\bcomo (?:una? )?(?:ia\b|modelo de lenguaje|inteligencia artificial|asistente)",
    r"\bno (?:hay|veo|se ha|se ve|encuentro|he recibido) (?:\w+ )?(?:ninguna |una |la )?imagen",
    # Italian
    r"\b(?:mi dispiace|mi spiace|spiacente|purtroppo|scusa\w*)\b.{0,80}\bnon\b",
    r"\bnon (?:posso|possiamo|sono in grado|mi è possibile|riesco a|sono autorizzat)",
    r"\b(?:come|in quanto) (?:ia\b|modello linguistico|intelligenza artificiale|assistente)",
    # Portuguese
    r"\b(?:desculp\w+|lamento|sinto muito|infelizmente)\b.{0,80}\bnão\b",
    r"\b(?:eu )?não (?:posso|consigo|sou capaz|estou (?:autorizad|apt)|me é possível|poderei)",
    r"\bcomo (?:uma? )?(?:ia\b|modelo de linguagem|inteligência artificial|assistente)",
    # Dutch
    r"\bik (?:kan|mag|wil) (?:\w+ ){0,8}?(?:niet|geen|helaas)\b",
    r"\b(?:sorry|het spijt (?:me|mij)|helaas)\b.{0,60}\b(?:niet|geen)\b",
    r"\bals (?:een )?(?:ai\b|ai-\w+|taalmodel|kunstmatige)",
    # Polish, Czech
    r"\b(?:przepraszam|przykro mi|niestety)\b.{0,80}\bnie\b",
    r"\bnie (?:mogę|jestem w stanie|potrafię)\b",
    r"\b(?:omlouvám se|bohužel|je mi líto)\b.{0,80}\b(?:nemohu|nemůžu|nejsem|nelze)",
    # Russian, Ukrainian
    r"(?:извините|простите|к сожалению|сожалею|прошу прощения).{0,80}\b(?:не|нет)\b",
    r"\bя не (?:могу|в состоянии|имею)",
    r"как (?:ии\b|языковая модель|искусственный интеллект)",
    r"\bне могу (?:помочь|описать|выполнить|обработать|предоставить)",
    r"(?:вибачте|на жаль|перепрошую).{0,80}\bне\b",
    # Turkish
    r"\b(?:üzgünüm|özür dilerim|maalesef)\b.{0,100}(?:am[ıi]yorum|"
    r"em[ıi]yorum|emem|amam|değil|yok)",
    # Chinese, Japanese, Korean
    r"(?:我|抱歉|对不起|對不起|很遗憾|很遺憾|不好意思).{0,16}"
    r"(?:无法|無法|不能|不可以|没有办法|不便|沒有辦法|拒绝)",
    r"(?:作为|身为|作為)(?:一个|一個|一名)?(?:ai|人工智能|人工智慧|语言模型|語言模型|助手)",
    r"(?:没有|沒有|未)(?:看到|收到|提供|上传|上傳|检测到|任何)[^。]{0,8}(?:图|圖|照片)",
    r"(?:申し訳|すみません|ごめんなさい|恐れ入り|残念ながら).{0,60}(?:ません|できない|おりません|かねます)",
    r"(?:お手伝い|お答え|回答|説明|対応|処理|提供|特定|識別|表示)(?:する(?:こと)?|すること)?(?:は|が|を)?"
    r"(?:できません|いたしかねます|できかねます|しかねます)",
    r"(?:죄송|미안|유감).{0,60}(?:없|못|않|어렵)",
    r"(?:도와|제공|설명|식별|처리|답변)[^.]{0,12}(?:수 없|드릴 수 없|할 수 없)",
)
_REFUSALS = re.compile("|".join(f"(?:{pattern})" for pattern in (*_ENGLISH, *_OTHERS)))


def is_refusal(text: str) -> bool:
    beginning = unquoted(plain(text[: 2 * LETTERS_READ]))[:LETTERS_READ]
    return bool(_REFUSALS.search(beginning))
