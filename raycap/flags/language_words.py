"""Usual words of languages, and letters that few other languages have."""

from collections.abc import Mapping

_ENGLISH = """
a an the this that these those is are was were be been being has have had of in on at to from with
without and or but for by as it its his her their he she they there which who while where near into
over under behind front next between through down up out off against around across other one two
three four five several many some all man men woman women girl girls boy boys child children people
person dog dogs cat cats horse horses car bike street water snow grass field beach ball tree trees
red blue green white black brown yellow grey gray pink orange wearing standing sitting walking
running playing riding jumping holding looking smiling shirt hat jacket dress young old small large
little big group background image picture photo shows shown showing appears features building wall
sky table day night sunny wooden player team crowd mountain rock stands sits walks runs plays jumps
rides holds looks him them what not no very top side outside inside together baby kids kid toddler
dirt road sand pool air swim swims swimming climbing climbs stick mouth face motorcycle bicycle
soccer football basketball tennis skateboard snowboarder skier surfer dressed covered colorful dark
bright blonde hair does do can will
"""
_GERMAN = """
der die das den dem des ein eine einen einem einer eines und oder aber ist sind war waren wird
werden hat haben in im am an auf aus bei mit nach von vom zu zum zur für über unter vor hinter
neben zwischen durch gegen um ohne sich nicht auch als wie sie er es ihr sein seine seiner ihre
ihrer ihren ihrem während wo was einige mehrere viele alle zwei drei vier fünf mann männer frau
frauen mädchen junge jungen kind kinder menschen leute person personen hund hunde katze katzen
pferd pferde auto fahrrad straße wasser schnee gras wiese feld strand ball baum bäume rot rote
roten roter rotes blau blaue blauen grün grüne grünen weiß weiße weißen schwarz schwarze schwarzen
braun braune braunen gelb gelbe gelben grau graue steht stehen sitzt sitzen läuft laufen geht gehen
spielt spielen fährt fahren reitet springt springen hält halten schaut trägt tragen lächelt hemd
hut jacke kleid jung junger alte alter kleiner kleine kleines kleinen große großer großen gruppe
hintergrund bild foto zeigt sehen dabei gebäude haus wand himmel tisch tag nacht liegt liegen
vordergrund
"""
_FRENCH = """
le la les un une des du de d l et ou mais est sont était étaient a ont au aux en dans sur sous avec
sans pour par devant derrière entre vers chez qui que quoi dont où il elle ils elles son sa ses
leur leurs ce cet cette ces se s ne pas plus très aussi comme pendant tandis deux trois quatre cinq
plusieurs quelques tous homme hommes femme femmes fille filles garçon garçons enfant enfants gens
personne personnes chien chiens chat chats cheval chevaux voiture vélo rue eau neige herbe champ
plage balle ballon arbre arbres rouge rouges bleu bleue vert verte blanc blanche noir noire noirs
marron brun jaune jaunes gris grise debout assis assise assises marche marchent court courent joue
jouent saute sautent tient tiennent regarde regardent porte portant sourit chemise chapeau veste
robe jeune jeunes petit petite petits grand grande groupe arrière plan image photo montre bâtiment
mur ciel table jour nuit côté près bord
"""
_SPANISH = """
el la los las un una unos unas de del y o pero es son era está están estaba estaban ha han en con
sin para por sobre bajo ante entre hacia desde hasta detrás delante junto al que quien cual donde
mientras su sus se le lo les no más muy también como dos tres cuatro cinco varios varias algunos
algunas todos hombre hombres mujer mujeres niña niñas niño niños gente persona personas perro
perros gato gatos caballo caballos coche bicicleta calle agua nieve hierba césped campo playa
pelota árbol árboles rojo roja rojos azul azules verde verdes blanco blanca negro negra negros
marrón amarillo amarilla gris parado pie sentado sentada sentados caminando camina corre corriendo
juega jugando juegan salta saltando sostiene mira mirando lleva sonríe camisa sombrero chaqueta
vestido joven jóvenes pequeño pequeña grande grupo fondo imagen foto muestra edificio pared cielo
mesa día noche lado cerca
"""
_ITALIAN = """
il lo la i gli le un uno una di del dello della dei degli delle e o ma è sono era erano ha hanno in
nel nella nello nei nelle con senza per su sul sulla sullo sui sulle sotto davanti dietro tra fra
verso da dal dalla dai che chi cui dove mentre suo sua suoi sue loro si non più molto anche come
due tre quattro cinque diversi alcuni alcune tutti uomo uomini donna donne ragazza ragazze ragazzo
ragazzi bambino bambina bambini gente persona persone cane cani gatto gatti cavallo cavalli
macchina auto bicicletta strada acqua neve erba prato campo spiaggia palla albero alberi rosso
rossa rossi blu verde verdi bianco bianca bianchi nero nera neri marrone giallo gialla grigio
grigia piedi seduto seduta seduti cammina camminano corre corrono gioca giocano salta saltano tiene
guarda guardano indossa sorride camicia cappello giacca vestito giovane giovani piccolo piccola
grande gruppo sfondo immagine foto mostra edificio muro cielo tavolo giorno notte vicino accanto
"""
_PORTUGUESE = """
o a os as um uma uns umas de do da dos das e ou mas é são era estava está estão tem têm em no na
nos nas num numa com sem para por pelo pela sobre sob diante atrás entre até que quem qual onde
enquanto seu sua seus suas se não mais muito também como dois duas três quatro cinco vários várias
alguns algumas todos homem homens mulher mulheres menina meninas menino meninos criança crianças
pessoas pessoa cachorro cachorros cão cães gato gatos cavalo cavalos carro bicicleta rua água neve
grama relva campo praia bola árvore árvores vermelho vermelha azul verde branco branca brancos
preto preta pretos marrom castanho amarelo amarela cinza pé sentado sentada sentados caminha
caminhando andando corre correndo brinca brincando joga jogando pula pulando salta segura segurando
olha olhando veste vestindo usando sorri camisa chapéu jaqueta casaco vestido jovem jovens pequeno
pequena grande grupo fundo imagem foto mostra edifício prédio parede céu mesa dia noite lado perto
ao à
"""
_DUTCH = """
de het een en of maar is zijn was waren wordt worden heeft hebben in op aan uit bij met naar van
voor achter naast tussen door tegen om over onder zonder zich niet ook als zij hij ze haar hun die
dat deze dit terwijl waar wat twee drie vier vijf enkele meerdere veel alle man mannen vrouw
vrouwen meisje meisjes jongen jongens kind kinderen mensen persoon personen hond honden kat katten
paard paarden auto fiets straat water sneeuw gras veld strand bal boom bomen rood rode blauw blauwe
groen groene wit witte zwart zwarte bruin bruine geel gele grijs grijze staat staan zit zitten
loopt lopen rent rennen speelt spelen rijdt rijden springt springen houdt kijkt kijken draagt
dragen lacht shirt hoed jas jurk jonge oude kleine grote groep achtergrond afbeelding foto toont
gebouw huis muur lucht tafel dag nacht ligt
"""
_SWEDISH = """
en ett den det de och eller men är var har hade i på av från med utan till för över under framför
bakom bredvid mellan genom mot som vid om sig inte också hans hennes deras sin sitt sina han hon
medan där två tre fyra fem några flera många alla man män kvinna kvinnor flicka flickor pojke
pojkar barn människor person personer hund hundar katt katter häst hästar bil cykel gata vatten snö
gräs fält strand boll träd röd röda rött blå blått grön gröna grönt vit vita vitt svart svarta brun
bruna gul gula grå står sitter går springer leker spelar rider hoppar håller tittar bär ler skjorta
hatt jacka klänning ung unga gammal liten litet små stor stora stort grupp bakgrunden bild bilden
foto visar byggnad hus vägg himmel bord dag natt ligger
"""
_DANISH = """
en et den det de og eller men er var har havde i på af fra med uden til for over under foran bag
ved siden mellem gennem mod som om sig ikke også hans hendes deres sin sit sine han hun mens hvor
to tre fire fem nogle flere mange alle mand mænd kvinde kvinder pige piger dreng drenge barn børn
mennesker person personer hund hunde kat katte hest heste bil cykel gade vand sne græs mark strand
bold træ træer rød røde rødt blå blåt grøn grønne grønt hvid hvide hvidt sort sorte brun brune gul
gule grå står sidder går løber leger spiller rider hopper holder kigger ser bærer iført smiler
skjorte hat jakke kjole ung unge gammel lille små stor store stort gruppe baggrunden billede
billedet foto viser bygning hus væg himmel bord dag nat ligger
"""
_NORWEGIAN = """
en ei et den det de og eller men er var har hadde i på av fra med uten til for over under foran bak
ved siden mellom gjennom mot som om seg ikke også hans hennes deres sin sitt sine han hun mens hvor
to tre fire fem noen flere mange alle mann menn kvinne kvinner jente jenter gutt gutter barn
mennesker person personer hund hunder katt katter hest hester bil sykkel gate vann snø gress mark
strand ball trær rød røde rødt blå blått grønn grønne hvit hvite hvitt svart svarte brun brune gul
gule grå står sitter går løper leker spiller rir hopper holder ser bærer iført smiler skjorte hatt
jakke kjole ung unge gammel liten små stor store stort gruppe bakgrunnen bilde bildet foto viser
bygning hus vegg himmel bord dag natt ligger
"""
_FINNISH = """
ja tai mutta on ovat oli olivat ei joka jotka jossa jolla se ne hän he hänen heidän sen niiden kun
kuin myös sekä kanssa ilman yli alla edessä takana vieressä välissä läpi kohti yksi kaksi kolme
neljä viisi useita monta kaikki mies miehet miestä nainen naiset naista tyttö tytöt poika pojat
lapsi lapset lasta ihmiset ihmisiä ihminen henkilö koira koirat koiraa kissa kissat hevonen hevoset
auto pyörä katu kadulla vesi vedessä lumi lumessa ruoho ruohikolla nurmikolla pelto ranta rannalla
pallo pallon puu puut punainen punaisessa sininen sinisessä vihreä valkoinen valkoisessa musta
mustassa ruskea keltainen harmaa seisoo seisovat istuu istuvat kävelee kävelevät juoksee juoksevat
leikkii leikkivät pelaa pelaavat ratsastaa hyppää pitää katsoo katsovat yllään hymyilee paita hattu
takki mekko nuori vanha pieni iso suuri ryhmä taustalla kuva kuvassa näkyy talo seinä taivas pöytä
pöydällä päivä yö
"""
_POLISH = """
i lub ale jest są był była byli było ma mają w we na z ze do od po dla przez przy pod nad przed za
obok między się nie też także jak to ten ta te tego tej który która które gdzie podczas gdy jego
jej ich swój swoją dwa dwie dwóch trzy trzech cztery pięć kilka wiele wszyscy mężczyzna mężczyźni
mężczyzn kobieta kobiety kobiet dziewczyna dziewczynka dziewczynki chłopiec chłopcy chłopców
dziecko dzieci ludzie ludzi osoba osoby osób pies psy psów kot koty koń konie samochód rower ulica
ulicy woda wodzie śnieg śniegu trawa trawie pole plaża plaży piłka piłkę drzewo drzewa czerwony
czerwona czerwonej czerwonym niebieski niebieska niebieskiej zielony zielona zielonej biały biała
białej białym czarny czarna czarnej czarnym brązowy żółty żółta szary stoi stoją siedzi siedzą
idzie idą biegnie biegną bawi bawią gra grają jedzie skacze trzyma patrzy patrzą nosi ubrany ubrana
uśmiecha koszula koszuli kapelusz kurtka sukienka młody młoda stary mały mała duży duża grupa tle
obraz zdjęcie zdjęciu przedstawia budynek ściana niebo stół stole dzień noc leży
"""
_CZECH = """
a nebo ale je jsou byl byla byli bylo má mají v ve na z ze do od po pro přes při pod nad před za
vedle mezi se si ne také jak to ten ta ty toho který která které kde když zatímco jeho její jejich
svůj svou dva dvě tři čtyři pět několik mnoho všichni muž muži mužů žena ženy žen dívka dívky
holčička chlapec chlapci kluk dítě děti lidé lidí osoba pes psi psů kočka kočky kůň koně auto kolo
ulice ulici voda vodě sníh sněhu tráva trávě pole pláž pláži míč míčem strom stromy červený červené
červeném modrý modré modrém zelený zelené bílý bílé bílém černý černá černé černém hnědý hnědá
žlutý žluté šedý stojí sedí jde jdou běží hraje hrají jede skáče drží dívá dívají nosí oblečený
usmívá košile klobouk bunda šaty mladý mladá starý malý malá velký velká skupina pozadí obrázek
fotografie ukazuje budova zeď obloha stůl stole den noc leží
"""
_ROMANIAN = """
un o și sau dar este sunt era erau are au în din de la cu fără pentru pe peste sub lângă între prin
spre către care ce unde când timp se nu mai foarte ca cum lui ei lor sa său săi sale doi două trei
patru cinci mulți multe toți bărbat bărbați bărbatul femeie femei femeia fată fete fata băiat
băieți băiatul copil copii copilul oameni persoană persoane câine câini câinele pisică pisici cal
cai mașină bicicletă stradă apă zăpadă iarbă câmp plajă minge copac copaci roșu roșie albastru
albastră verde alb albă negru neagră maro galben galbenă gri stă stau așezat merge merg aleargă
joacă sare ține privește poartă purtând zâmbește cămașă pălărie jachetă rochie tânăr tânără bătrân
mic mică mare grup fundal imagine imaginea fotografie arată clădire perete cer masă zi noapte
"""
_HUNGARIAN = """
a az egy és vagy de van vannak volt voltak nem is hogy mint aki ami akik amely ahol miközben amint
vele nélkül fölött alatt előtt mögött mellett között át felé két három négy öt több sok minden
férfi férfiak nő nők lány lányok fiú fiúk gyerek gyerekek gyermek emberek ember személy kutya
kutyák macska ló lovak autó kerékpár bicikli utca utcán víz vízben hó hóban fű fűben füvön mező
strand parton labda labdával fa fák piros pirosban kék zöld fehér fekete barna sárga szürke áll
állnak ül ülnek sétál sétálnak fut futnak játszik játszanak lovagol ugrik tart tartja néz nézi
visel mosolyog ing póló kalap kabát ruha fiatal öreg kis kicsi nagy csoport háttérben kép képen
fénykép látható mutat épület fal ég asztal asztalon nap éjszaka fekszik
"""
_TURKISH = """
ve veya ama bir bu şu o var yok değil ile için gibi kadar sonra önce üzerinde üstünde altında
önünde arkasında yanında arasında içinde doğru iki üç dört beş birkaç birçok tüm adam adamlar erkek
kadın kadınlar kız kızlar oğlan çocuk çocuklar çocuğu insanlar insan kişi köpek köpekler köpeği
kedi kediler at atlar araba bisiklet sokak sokakta su suda suyun kar karda çim çimenlerde tarla
plaj plajda sahilde top topu ağaç ağaçlar kırmızı mavi yeşil beyaz siyah kahverengi sarı gri
duruyor duran oturuyor oturan yürüyor yürüyen koşuyor koşan oynuyor oynayan biniyor atlıyor
zıplıyor tutuyor tutan bakıyor bakan giyiyor giyen giymiş gülümsüyor gömlek şapka ceket elbise genç
yaşlı küçük büyük grup arka planda arkaplanda resim resimde fotoğraf fotoğrafta gösteriyor bina
duvar gökyüzü masa masada gün gece
"""
_VIETNAMESE = """
một và hoặc nhưng là có không đang đã của trong trên dưới trước sau bên cạnh giữa qua với cho từ
đến ở khi này đó những các người đàn ông phụ nữ cô gái cậu bé trẻ em đứa con chó mèo ngựa xe đạp ô
tô đường phố nước tuyết cỏ cánh đồng bãi biển bóng cây màu đỏ xanh trắng đen nâu vàng xám đứng ngồi
đi chạy chơi cưỡi nhảy cầm nhìn mặc cười áo mũ váy già nhỏ lớn nhóm nền hình ảnh bức thấy tòa nhà
tường bầu trời bàn ngày đêm hai ba bốn năm nhiều
"""
_INDONESIAN = """
dan atau tetapi adalah ada tidak yang di ke dari dengan tanpa untuk pada dalam atas bawah depan
belakang samping antara melalui sebuah seorang seekor ini itu mereka dia nya saat sambil sedang dua
tiga empat lima beberapa banyak semua pria laki wanita perempuan gadis anak orang anjing kucing
kuda mobil sepeda jalan air salju rumput lapangan pantai bola pohon merah biru hijau putih hitam
coklat cokelat kuning abu berdiri duduk berjalan berlari bermain melompat memegang melihat memakai
mengenakan tersenyum baju kemeja topi jaket gaun muda tua kecil besar kelompok sekelompok latar
gambar foto menunjukkan bangunan gedung dinding langit meja hari malam
"""
_RUSSIAN = """
и или но а в во на с со из от до по для через при под над перед за рядом между не это этот эта эти
который которая которые где когда как его её их свой свою что он она они у к о об два две три
четыре пять несколько много все мужчина мужчины женщина женщины девушка девочка девочки мальчик
мальчики ребенок ребёнок дети люди людей человек собака собаки собак кошка кот лошадь лошади машина
велосипед улица улице вода воде снег снегу трава траве поле пляж пляже мяч мячом дерево деревья
красный красная красной красном синий синяя синей зеленый зелёный белый белая белой белом черный
чёрный чёрная коричневый коричневая желтый жёлтый серый стоит стоят сидит сидят идет идёт идут
бежит бегут играет играют едет прыгает держит смотрит одет одета рубашка шляпа куртка платье
молодой молодая старый маленький маленькая большой большая группа фоне изображение фото фотографии
показывает здание стена небо стол столе день ночь лежит
"""
_UKRAINIAN = """
і й та або але а в у на з із зі від до по для через при під над перед за поруч біля між не це цей
ця ці який яка які де коли як його її їх їхній свій свою що він вона вони два дві три чотири п'ять
кілька багато всі чоловік чоловіки жінка жінки дівчина дівчинка хлопець хлопчик дитина діти люди
людей людина собака собаки кішка кіт кінь коні машина автомобіль велосипед вулиця вулиці вода воді
сніг снігу трава траві поле пляж пляжі м'яч дерево дерева червоний червона червоній синій синя
зелений зелена білий біла білій чорний чорна коричневий коричнева жовтий сірий стоїть стоять сидить
сидять йде йдуть біжить біжать грає грають їде стрибає тримає дивиться одягнений сорочка капелюх
куртка сукня молодий молода старий маленький маленька великий велика група тлі зображення фото
фотографії показує будівля стіна небо стіл столі день ніч лежить
"""

WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": _ENGLISH,
        "de": _GERMAN,
        "fr": _FRENCH,
        "es": _SPANISH,
        "it": _ITALIAN,
        "pt": _PORTUGUESE,
        "nl": _DUTCH,
        "sv": _SWEDISH,
        "da": _DANISH,
        "no": _NORWEGIAN,
        "fi": _FINNISH,
        "pl": _POLISH,
        "cs": _CZECH,
        "ro": _ROMANIAN,
        "hu": _HUNGARIAN,
        "tr": _TURKISH,
        "vi": _VIETNAMESE,
        "id": _INDONESIAN,
        "ru": _RUSSIAN,
        "uk": _UKRAINIAN,
    }.items()
}
LETTERS: Mapping[str, frozenset[str]] = {
    "de": frozenset("ß"),
    "fr": frozenset("œ"),
    "es": frozenset("ñ"),
    "pt": frozenset("ãõ"),
    "da": frozenset("æø"),
    "no": frozenset("æø"),
    "pl": frozenset("łżźśąęń"),
    "cs": frozenset("řěů"),
    "ro": frozenset("țșţş"),
    "hu": frozenset("őű"),
    "tr": frozenset("ğış"),
    "vi": frozenset("đơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ"),
    "uk": frozenset("іїєґ"),
    "ru": frozenset("ыэъё"),
}
