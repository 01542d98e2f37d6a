"""The words of the stories, each once, in English and Chinese.

Not in the paper: this project's own data. A word is known by its English base form; a form (plural, measure word,
pronoun, ...) is a function of the word and the language. `phrases` writes `{item}` for a word and `{item.m}` for its form.

    a b c d e      people      {a.sub} name or she   {a.obj} name or her   {a.pos} Mia's or her   {a.own} always her
    n m k j        numbers     {things.n} shell or shells, as n says (Chinese: the noun; {things.m} is its measure word)
    place spot     where       {place} in the garden   {place.to} the garden

Differs from the paper: nothing, the paper has no such part.
Left out: everything a story of a hundred words does not need.
Notebook: 01_tokens.
"""

from __future__ import annotations

_GIRLS = "Lily 莉莉 Mia 米娅 Anna 安娜 Nora 诺拉 Ella 艾拉 Lucy 露西 Zoe 佐伊 Ivy 艾薇 Emma 艾玛 Sara 莎拉 Rose 萝丝 Kate 凯特"
_BOYS = "Tom 汤姆 Leo 里奥 Sam 山姆 Jack 杰克 Tim 蒂姆 Finn 芬恩 Noah 诺亚 Peter 彼得 Henry 亨利 Oscar 奥斯卡 Hugo 雨果 Max 麦克"
_PETS = "Pip 皮皮 Coco 可可 Spot 斑斑 Momo 毛毛 Bubbles 泡泡 Button 豆豆 Snowy 雪球 Rusty 阿黄 Tiny 小不点 Lucky 福福"
_COLOURS = (
    "red 红色 blue 蓝色 green 绿色 yellow 黄色 white 白色 black 黑色 brown 棕色 purple 紫色 pink 粉色 grey 灰色 golden 金色 "
    "silver 银色 orange 橙色"
)
_ITEMS = (
    "kite 风筝 只|ball 皮球 个|hat 帽子 顶|scarf 围巾 条|drum 小鼓 面|book 书 本|cup 杯子 个|key 钥匙 把|lamp 灯 盏|bell 铃铛 个|"
    "umbrella 雨伞 把|doll 布娃娃 个|flute 笛子 支|bucket 小桶 个|coat 外套 件|clock 钟 座|spoon 勺子 把|toy boat 玩具船 艘|"
    "ring 戒指 枚|mirror 镜子 面"
)
_THINGS = (
    "apple apples 苹果 个|shell shells 贝壳 枚|egg eggs 鸡蛋 个|stone stones 石头 块|flower flowers 花 朵|nut nuts 坚果 颗|"
    "button buttons 纽扣 颗|cookie cookies 饼干 块|pear pears 梨 个|feather feathers 羽毛 根|candle candles 蜡烛 支|"
    "plum plums 李子 个|stamp stamps 邮票 张|card cards 卡片 张|bun buns 小面包 个|marble marbles 弹珠 颗|coin coins 硬币 枚|"
    "seed seeds 种子 粒|carrot carrots 胡萝卜 根|cherry cherries 樱桃 颗"
)
_ANIMALS = (
    "dog 小狗|cat 小猫|rabbit 兔子|duck 鸭子|hen 母鸡|goat 山羊|pony 小马|mouse 老鼠|fox 狐狸|owl 猫头鹰|hedgehog 刺猬|"
    "frog 青蛙|turtle 乌龟|squirrel 松鼠|lamb 小羊|goose 大鹅"
)
_PLACES = (
    "in the garden=the garden 花园里=花园|by the river=the river 小河边=小河边|on the hill=the hill 山坡上=山坡|"
    "at the market=the market 集市上=集市|in the barn=the barn 谷仓里=谷仓|near the well=the well 水井旁=水井旁|"
    "beside the pond=the pond 池塘边=池塘边|under the old bridge=the old bridge 老桥下=老桥下|"
    "under the big oak=the big oak 大橡树下=大橡树下|behind the school=the school 学校后面=学校|"
    "in the forest=the forest 森林里=森林|on the beach=the beach 沙滩上=沙滩|near the mill=the mill 磨坊旁=磨坊|"
    "outside the bakery=the bakery 面包店门口=面包店|in the orchard=the orchard 果园里=果园|"
    "by the gate=the gate 大门口=大门口"
)
_SPOTS = (
    "in the box 盒子里|in the basket 篮子里|in the drawer 抽屉里|in the cupboard 柜子里|under the bed 床底下|"
    "behind the door 门后面|on the shelf 架子上|under the table 桌子底下|in the bag 袋子里|on the windowsill 窗台上"
)
_HOLDERS = "box 盒子|bag 袋子|chest 箱子|basket 篮子|sack 麻袋|case 皮箱|tin 铁罐|trunk 木箱"
_HOMES = (
    "near the sea 海边|at the edge of the forest 森林边上|in a small village 一个小村子里|on a farm 一座农场里|"
    "next to the bakery 面包店隔壁|in a house with a blue door 一座蓝门的房子里|at the foot of a hill 山脚下|"
    "in a quiet street 一条安静的街上|by a wide river 一条大河边"
)
_TIMES = (
    "one sunny morning 一个晴朗的早晨|one cold afternoon 一个寒冷的下午|one windy day 一个刮风的日子|"
    "one spring morning 一个春天的早晨|one evening 一天傍晚|one rainy day 一个下雨天|one summer day 一个夏日|"
    "early one morning 一天清晨|one day after school 一天放学后|one Sunday 一个星期天|one warm day 一个暖和的日子|"
    "one snowy day 一个下雪天"
)
_TRAITS = "kind 善良|brave 勇敢|clever 聪明|quiet 文静|cheerful 开朗|curious 好奇|patient 耐心|shy 害羞|polite 有礼貌|lively 活泼"
_RELS = "friend 朋友|neighbour 邻居|classmate 同学|playmate 玩伴"
_FEELS = "happy 高兴|proud 自豪|excited 激动|grateful 感激|glad 开心|surprised 惊喜"
_GLOOMS = "sad 难过|worried 担心|upset 伤心|puzzled 纳闷|nervous 着急|gloomy 沮丧"
_VERBS = (
    "chased away 赶走|woke up 吵醒|stopped 拦住|scared 吓到|caught up with 追上|bumped into 撞到|hugged 抱住|"
    "splashed 溅湿|called to 叫住|followed 跟上"
)
_TREATS = "cake 蛋糕|cheese 奶酪|pie 馅饼|bread 面包|sausage 香肠|pancake 煎饼|corn 玉米|honey 蜂蜜"
_ORDERS = "first 第一 second 第二 third 第三"

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_TENS = {20: "twenty", 30: "thirty", 40: "forty"}
_HAN = "零一二三四五六七八九十"
_PRONOUNS = {  # (form, gender) -> English, Chinese
    ("sub", "f"): ("she", "她"),
    ("sub", "m"): ("he", "他"),
    ("obj", "f"): ("her", "她"),
    ("obj", "m"): ("him", "他"),
    ("pos", "f"): ("her", "她的"),
    ("pos", "m"): ("his", "他的"),
}
_FIXED = {"he": "sub", "him": "obj", "own": "pos"}  # always the pronoun: its person is named in the same sentence

WORDS: dict[str, dict] = {}  # type -> word -> its row of forms


def _pairs(text: str) -> dict:
    parts = text.split()
    return {en: (en, zh) for en, zh in zip(parts[::2], parts[1::2], strict=True)}


def _rows(text: str, n_chinese: int = 1) -> dict:
    rows = {}
    for row in text.split("|"):
        *en, last = row.rsplit(" ", n_chinese) if n_chinese == 1 else (row.rsplit(" ", n_chinese)[0], row)
        rows[en[0]] = (en[0], last) if n_chinese == 1 else (en[0], *row.rsplit(" ", n_chinese)[1:])
    return rows
