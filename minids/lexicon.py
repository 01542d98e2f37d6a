"""The words of the stories, each once, in English and Chinese, and their forms.

Not in the paper: this project's own data. A word is known by its first field, in English; a form (plural, measure word,
pronoun, ...) is a function of the word and the language. `phrases` writes `{item}` for a word, `{item.m}` for a form.

    a b c d        people      {a.sub} Mia or she   {a.obj} Mia or her   {a.pos} Mia's or her   {a.own} always her
    n m k j        numbers     {things.n} shell or shells, as n says; in Chinese {things.cl} is the measure word
    place          where       {place} in the garden   {place.to} the garden
    x y            the animals and treats of the chain story

Differs from the paper: nothing, the paper has no such part.
Left out: everything that a story of a hundred words does not need.
Notebook: 01_tokens.
"""

from __future__ import annotations

from functools import cache

_TABLE = """
girl: Lily/莉莉 | Mia/米娅 | Anna/安娜 | Nora/诺拉 | Ella/艾拉 | Lucy/露西 | Zoe/佐伊 | Ivy/艾薇 | Emma/艾玛
  | Sara/莎拉 | Rose/萝丝 | Kate/凯特 | Ruth/露丝 | Clara/克拉拉 | Alice/爱丽丝 | Bella/贝拉 | Julia/朱莉
  | Maya/玛雅
boy: Tom/汤姆 | Leo/里奥 | Sam/山姆 | Jack/杰克 | Tim/蒂姆 | Finn/芬恩 | Noah/诺亚 | Peter/彼得 | Henry/亨利
  | Oscar/奥斯卡 | Hugo/雨果 | Max/麦克 | Felix/菲利 | Oliver/奥利 | Simon/西蒙 | Theo/西奥 | Victor/维克
  | Adam/亚当
pet: Pip/皮皮 | Coco/可可 | Spot/斑斑 | Momo/毛毛 | Bubbles/泡泡 | Button/豆豆 | Snowy/雪球 | Rusty/阿黄
  | Tiny/小不点 | Lucky/福福
animal: dog/小狗 | cat/小猫 | rabbit/兔子 | duck/鸭子 | hen/母鸡 | goat/山羊 | pony/小马 | mouse/老鼠 | fox/狐狸
  | owl/猫头鹰 | frog/青蛙 | turtle/乌龟 | squirrel/松鼠 | lamb/小羊 | goose/大鹅 | hedgehog/刺猬
treat: cake/蛋糕/块 | cheese/奶酪/块 | pie/馅饼/个 | bread/面包/块 | sausage/香肠/根 | pancake/煎饼/张 | bun/包子/个
  | sandwich/三明治/个
item: kite/风筝/只 | ball/皮球/个 | hat/帽子/顶 | scarf/围巾/条 | drum/小鼓/面 | book/书/本 | cup/杯子/个
  | key/钥匙/把 | lamp/灯/盏 | bell/铃铛/个 | umbrella/雨伞/把 | doll/布娃娃/个 | flute/笛子/支 | bucket/小桶/个
  | coat/外套/件 | clock/小钟/座 | spoon/勺子/把 | toy boat/玩具船/艘 | ring/戒指/枚 | mirror/镜子/面
  | pencil/铅笔/支 | glove/手套/只 | teapot/茶壶/把 | puppet/木偶/个 | hammer/锤子/把 | blanket/毯子/条
  | whistle/哨子/个 | lantern/灯笼/盏
things: apple/苹果/个/apples | shell/贝壳/枚/shells | egg/鸡蛋/个/eggs | stone/石头/块/stones | flower/花/朵/flowers
  | nut/坚果/颗/nuts | button/纽扣/颗/buttons | cookie/饼干/块/cookies | pear/梨/个/pears | feather/羽毛/根/feathers
  | candle/蜡烛/支/candles | plum/李子/个/plums | stamp/邮票/张/stamps | card/卡片/张/cards | marble/弹珠/颗/marbles
  | carrot/胡萝卜/根/carrots | cherry/樱桃/颗/cherries | ribbon/丝带/条/ribbons
crop: tulip/郁金香/棵/tulips | sunflower/向日葵/棵/sunflowers | pumpkin/南瓜/棵/pumpkins
  | cabbage/卷心菜/棵/cabbages | strawberry/草莓/棵/strawberries | tomato/西红柿/棵/tomatoes | daisy/雏菊/棵/daisies
  | bean/豆苗/棵/beans
colour: red/红色 | blue/蓝色 | green/绿色 | yellow/黄色 | white/白色 | black/黑色 | brown/棕色 | purple/紫色
  | pink/粉色 | grey/灰色 | golden/金色 | silver/银色 | orange/橙色
place: in the garden/花园里/the garden/花园 | by the river/小河边/the river/小河边
  | on the hill/山坡上/the hill/山坡 | at the market/集市上/the market/集市 | in the barn/谷仓里/the barn/谷仓
  | near the well/水井旁/the well/水井旁 | beside the pond/池塘边/the pond/池塘边
  | under the old bridge/老桥下/the old bridge/老桥下 | under the big oak/大橡树下/the big oak/大橡树下
  | behind the school/学校后面/the school/学校 | in the forest/森林里/the forest/森林
  | on the beach/沙滩上/the beach/沙滩 | near the mill/磨坊旁/the mill/磨坊
  | outside the bakery/面包店门口/the bakery/面包店 | in the orchard/果园里/the orchard/果园
  | by the gate/大门口/the gate/大门口
spot: in the box/盒子里 | in the basket/篮子里 | in the drawer/抽屉里 | in the cupboard/柜子里
  | under the bed/床底下 | behind the door/门后面 | on the shelf/架子上 | under the table/桌子底下
  | in the bag/袋子里 | on the windowsill/窗台上
holder: box/盒子 | bag/袋子 | chest/箱子 | basket/篮子 | sack/麻袋 | suitcase/皮箱 | tin/铁罐 | jar/罐子
home: near the sea/海边 | at the edge of the forest/森林边上 | in a small village/一个小村子里
  | on a farm/一座农场里 | next to the bakery/面包店隔壁 | in a house with a blue door/一座蓝门的房子里
  | at the foot of a hill/山脚下 | in a quiet street/一条安静的街上 | beside a wide river/一条大河边
  | above a shop/一家店铺楼上 | in a tall tower/一座高塔里 | on an island/一座小岛上 | near a waterfall/瀑布旁
time: one sunny morning/一个晴朗的早晨 | one cold afternoon/一个寒冷的下午 | one windy day/一个刮风的日子
  | one spring morning/一个春天的早晨 | one evening/一天傍晚 | one cloudy day/一个阴天 | one summer day/一个夏日
  | early one morning/一天清晨 | one day after school/一天放学后 | one Sunday/一个星期天
  | one warm day/一个暖和的日子 | one autumn day/一个秋日 | one day in May/五月的一天
  | one misty morning/一个有雾的早晨 | one afternoon/一天下午 | one quiet Saturday/一个安静的星期六
trait: kind/善良 | brave/勇敢 | clever/聪明 | quiet/文静 | cheerful/开朗 | curious/好奇 | patient/耐心 | shy/害羞
  | polite/有礼貌 | lively/活泼 | gentle/温柔 | careful/细心 | honest/诚实 | helpful/热心 | funny/风趣 | calm/沉稳
rel: friend/朋友 | neighbour/邻居 | classmate/同学 | playmate/玩伴
glad: happy/高兴 | proud/自豪 | excited/激动 | cheerful/快活 | glad/开心
gloom: sad/难过 | worried/担心 | upset/伤心 | puzzled/纳闷 | nervous/着急
verb: chased away/赶走 | woke up/吵醒 | stopped/拦住 | scared/吓到 | caught up with/追上 | bumped into/撞到
  | hugged/抱住 | splashed/溅湿 | called to/叫住 | looked for/寻找
took: stole/偷走 | grabbed/叼走 | found/找到 | carried off/搬走
garment: jacket/夹克 | sweater/毛衣 | shirt/衬衫 | raincoat/雨衣 | cloak/斗篷 | vest/背心 | cardigan/开衫
feet: boots/靴子 | shoes/鞋子 | socks/袜子 | sandals/凉鞋 | slippers/拖鞋 | stockings/长袜
hobby: painting/画画 | swimming/游泳 | singing/唱歌 | dancing/跳舞 | reading/读书 | running/跑步 | fishing/钓鱼
  | climbing trees/爬树 | telling stories/讲故事 | baking/烤面包 | playing chess/下棋 | skating/滑冰
  | whistling/吹口哨 | riding a bicycle/骑自行车 | counting stars/数星星
food: porridge/粥 | toast/吐司 | honey/蜂蜜 | jam/果酱 | rice/米饭 | stew/炖菜 | noodles/面条 | grapes/葡萄
  | yoghurt/酸奶 | corn/玉米 | melon/甜瓜 | potatoes/土豆 | dumplings/饺子 | beans/豆子
sky: blue/蓝蓝的 | grey/灰蒙蒙的 | clear/很晴朗 | bright/亮堂堂的 | pale/白茫茫的 | full of clouds/飘满了云
  | as red as fire/像火一样红
noise: the birds were singing/鸟儿在唱歌 | the bees were humming/蜜蜂嗡嗡叫 | a soft wind was blowing/微风轻轻吹
  | the leaves were rustling/树叶沙沙响 | a bell was ringing far away/远处传来钟声 | the grass was wet/草地湿漉漉的
  | children were laughing/有孩子在笑 | the air smelled of flowers/空气里有花香 | the frogs were croaking/蛙声一片
  | somebody was playing the piano/有人在弹琴 | it was very quiet/四周静悄悄的
then: then/然后 | soon/不久 | a moment later/片刻之后 | a little later/过了一会儿 | later that day/后来
  | after a while/又过了一阵 | before long/没多久 | next/接着
dream: the moon/月亮 | a flying horse/会飞的马 | a castle/城堡 | the sea/大海 | a dragon/龙 | a giant/巨人 | snow/雪
  | a ship/大船 | a rainbow/彩虹 | the stars/星空 | a talking tree/会说话的树 | a golden fish/金鱼 | a balloon/气球
  | a circus/马戏团
wild: bushes/灌木丛 | woods/树林 | tall grass/草丛 | reeds/芦苇丛 | ditch/水沟 | hedge/篱笆
""".strip()

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ("", "", "twenty", "thirty", "forty")
_HAN = "零一二三四五六七八九十"
MAX_NUMBER = 49
_PRONOUNS = {  # form, English (f, m), Chinese (f, m)
    "sub": (("she", "he"), ("她", "他")),
    "obj": (("her", "him"), ("她", "他")),
    "pos": (("her", "his"), ("她的", "他的")),
}
PRONOUN_FORMS = frozenset(_PRONOUNS)
_FIXED = {"he": "sub", "him": "obj", "own": "pos"}  # always the pronoun: its person is named in the same sentence
_KINDS = {
    "kind": (("girl", "boy"), ("小女孩", "小男孩")),
    "sib": (("little sister", "little brother"), ("妹妹", "弟弟")),
}


def _read(table: str) -> dict[str, dict[str, tuple[str, ...]]]:
    words = {}
    for line in table.replace("\n  |", " |").splitlines():
        kind, _, rows = line.partition(": ")
        fields = [tuple(row.strip().split("/")) for row in rows.split("|")]
        words[kind] = {row[0]: row for row in fields}
    words["person"] = {**words["girl"], **words["boy"]}
    words["x"] = {**words["animal"], **words["treat"]}
    return words


WORDS = _read(_TABLE)  # type -> word -> its row of forms
_ROLES = {"a": "person", "b": "person", "c": "person", "d": "person", "y": "x", "guess": "item"}
NUMBER_ROLES = frozenset("nmkj")


def kind_of(role: str) -> str:
    """The type of a slot: its role's name without digits, one letter for people and numbers."""
    base = role.rstrip("0123456789")
    return "number" if base in NUMBER_ROLES else _ROLES.get(base, base)


def gender(person: str) -> str:
    return "f" if person in WORDS["girl"] else "m"


def number(n: int, lang: str) -> str:
    """`n` in words (0 to 49); the Chinese two is the one that stands before a measure word."""
    if lang == "en":
        tens, ones = divmod(n, 10)
        return _ONES[n] if n < 20 else _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if n == 2:
        return "两"
    tens, ones = divmod(n, 10)
    return (_HAN[tens] if tens > 1 else "") + ("十" if tens else "") + (_HAN[ones] if ones or not tens else "")


def _article(text: str) -> str:
    return ("an " if text[0] in "aeiou" or text == "honest" else "a ") + text


def _by_gender(pair: tuple[str, str], person: str) -> str:
    return pair[0] if gender(person) == "f" else pair[1]


def form(kind: str, name: str, word: str | int, lang: str, count: int | None = None) -> str:
    """One form of a word. `name` is "" for the plain word; `count` decides between singular and plural."""
    zh = lang == "zh"
    if kind == "number":
        return number(int(word), lang)
    row = WORDS[kind][str(word)]
    plain = row[1] if zh else row[0]
    if name in _FIXED:
        return _by_gender(_PRONOUNS[_FIXED[name]][zh], row[0])
    if name in _KINDS:
        return _by_gender(_KINDS[name][zh], row[0])
    if name == "pos":
        return plain + ("的" if zh else "'s")
    if name == "to":
        return row[3] if zh else row[2]
    if name == "cl":
        return row[2]
    if name == "pl":
        return plain if zh else row[3]
    if name == "a":
        return plain if zh else _article(plain)
    if name in NUMBER_ROLES and not zh:
        return row[0] if count == 1 else row[3]
    return plain


def pronoun(name: str, person: str, lang: str) -> str:
    return _by_gender(_PRONOUNS[name][lang == "zh"], person)


def settles(kind: str, name: str) -> bool:
    """Whether a form tells which word it is; the others (his, girl, a measure word) only have to agree with it."""
    return name not in _FIXED and name not in _KINDS and name != "cl"


@cache
def readings(kind: str, name: str, lang: str) -> dict[str, tuple[str | int, ...]]:
    """Every text that a slot of this type and form can hold, with the words it may stand for."""
    words = range(MAX_NUMBER + 1) if kind == "number" else WORDS[kind]
    found: dict[str, list[str | int]] = {}
    for word in words:
        texts = {form(kind, name, word, lang, count) for count in (1, 2)}
        if name in PRONOUN_FORMS:
            texts.add(pronoun(name, str(word), lang))
        for text in texts:
            found.setdefault(text, []).append(word)
    return {text: tuple(ws) for text, ws in found.items()}
