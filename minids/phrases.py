"""The phrase book: what can happen in a story, what it changes in the world, and how it is said in two languages.

Not in the paper: this project's own data. Each rule is a name, its effects on the world (`minids.world`), and several
ways to say it. `{slots}` are filled with words (`minids.lexicon`); `{C}`, `{X}`, `{Y}` hold a phrase, and so nest:

    C   a clause                after "that": ... that Tom said that Ben had seen the kite by the river
    X   an animal, described    the dog that woke up the cat that stole the cake
    Y   a holder, described     the box that was inside the bag that was inside the chest

The same lines are compiled to a writer and to a reader (`minids.grammar`), so there is one grammar, not two.
The sentences that any tale may use, and the questions, are here; those of the single plots are in `events`.
Differs from the paper: nothing, the paper has no such part.
Left out: tenses other than the past, plural subjects that need a pronoun.
Notebook: 01_tokens.
"""

# A line without indent is `name: effects` (after `C`, `X` or `Y` for phrases inside sentences); the others say it.
PHRASES = """
intro: new a ; trait a = trait ; home a = home
  en Once upon a time there was {trait.a} {a.kind} called {a} who lived {home}.
  en {a} was {trait.a} {a.kind} who lived {home}.
  en There was once {trait.a} {a.kind} called {a}, and {a.he} lived {home}.
  en Long ago, {trait.a} {a.kind} called {a} lived {home}.
  zh 从前有一个{trait}的{a.kind}，名叫{a}，住在{home}。
  zh {a}是一个{trait}的{a.kind}，家住{home}。
  zh 很久以前，有个叫{a}的{a.kind}住在{home}，大家都说{a.he}很{trait}。
friend: new b ; rel b = rel ; friend a = b
  en {a.sub} had a {rel} called {b}.
  en {a.pos} best {rel} was called {b}.
  en Every day {a.sub} played with {b}, {a.own} {rel}.
  zh {a.sub}有一个{rel}，叫{b}。
  zh {a.pos}{rel}叫{b}。
  zh {a.sub}每天都和{rel}{b}一起玩。
sibling: new b ; sibling a = b
  en {a.sub} had a {b.sib} called {b}.
  en {a.pos} {b.sib} was called {b}.
  zh {a.sub}有一个{b.sib}，叫{b}。
  zh {a.pos}{b.sib}叫{b}。
others: new c ; new d
  en Two other children, {c} and {d}, lived nearby.
  en {c} and {d} lived in the next house.
  zh 附近还住着两个孩子，{c}和{d}。
  zh 隔壁住着{c}和{d}两个孩子。
third: new c
  en Another child, {c}, lived nearby.
  en {c} lived in the next house.
  zh 附近还住着一个孩子，叫{c}。
  zh {c}住在隔壁。
pet: new pet ; new animal ; pet a = pet ; species pet = animal
  en {a.sub} had {animal.a} called {pet} that followed {a.him} everywhere.
  en {a.pos} pet was {animal.a} called {pet}.
  zh {a.sub}养了一只{animal}，名叫{pet}，它总是跟着{a.him}。
  zh {a.pos}宠物是一只{animal}，名叫{pet}。
wears: wears a = garment ; hue a = colour ; shoes a = feet ; tint a = colour2
  en {a.sub} was wearing {colour.a} {garment} and {colour2} {feet}.
  en Everyone knew {a.obj} by the {colour} {garment} and the {colour2} {feet} that {a.he} wore.
  en {a.sub} had put on {colour.a} {garment} and {colour2} {feet}.
  zh {a.sub}穿着{colour}的{garment}和{colour2}的{feet}。
  zh {a.sub}总是穿{colour}的{garment}和{colour2}的{feet}，大家远远就能认出{a.him}。
likes: likes a = hobby
  en {a.sub} liked {hobby} and {hobby2}.
  en Most of all {a.sub} enjoyed {hobby}, but {hobby2} was fun too.
  en {a.sub} was good at {hobby}, though not at {hobby2}.
  zh {a.sub}喜欢{hobby}和{hobby2}。
  zh {a.sub}最爱{hobby}，也喜欢{hobby2}。
  zh {a.sub}很会{hobby}，却不太会{hobby2}。
meal: meal a = food ; side a = food2 ; sweet a = food3
  en For breakfast {a.sub} ate {food}, {food2} and {food3}.
  en {a.sub} ate {food} with {food2}, and a little {food3} after it.
  zh {a.sub}早饭吃了{food}、{food2}和{food3}。
  zh {a.sub}吃了{food}和{food2}，又吃了一点{food3}。
age: age a = n
  en {a.sub} was {n} years old.
  en {a.sub} had just turned {n}.
  zh {a.sub}今年{n}岁。
  zh {a.sub}刚满{n}岁。
weather:
  en The sky was {sky}, and {noise}.
  en Outside {noise}, and the sky was {sky}.
  zh 天空{sky}，{noise}。
  zh 外面{noise}，天空{sky}。
own: new item ; owner item = a ; colour item = colour
  en {a.sub} had {colour.a} {item} and loved it very much.
  en The thing {a.sub} loved most was {colour.a} {item}.
  en {a.sub} had just been given {colour.a} {item}.
  zh {a.sub}有一{item.cl}{colour}的{item}，非常喜欢。
  zh {a.pos}宝贝是一{item.cl}{colour}的{item}。
  zh {a.sub}刚刚得到一{item.cl}{colour}的{item}。
gloomy:
  en {a.sub} sat down and felt very {gloom}.
  en {a.sub} was so {gloom} that {a.he} could not eat.
  en "I am so {gloom}," said {a}.
  zh {a.sub}坐了下来，心里很{gloom}。
  zh {a.sub}{gloom}得吃不下饭。
  zh {a.sub}说：“我真{gloom}啊。”
thank:
  en "Thank you, {b}," said {a}.
  en {a.sub} hugged {b.obj} and said, "Thank you so much!"
  en {a.sub} thanked {b.obj} with all {a.own} heart.
  en {a} was so {glad} that {a.he} gave {b} some {food}.
  en "I will never forget this, {b}," said {a}.
  zh {a.sub}说：“谢谢你，{b}！”
  zh {a.sub}抱住{b.obj}说：“太谢谢你了！”
  zh {a.sub}真心地感谢{b.obj}。
  zh {a.sub}很{glad}，请{b}吃了{food}。
  zh {a.sub}说：“{b}，我永远不会忘记的。”
glad:
  en {a.sub} was very {glad} that day.
  en {a.sub} went home feeling {glad}.
  en That night {a.sub} slept well and dreamed of {dream}.
  en At supper {a.sub} ate {food} and told everyone about {dream}.
  zh 那天{a.sub}非常{glad}。
  zh {a.sub}{glad}地回家了。
  zh 那天晚上，{a.sub}睡得很香，梦见了{dream}。
  zh 吃晚饭时，{a.sub}一边吃{food}，一边给大家讲{dream}的故事。
both:
  en {a} and {b} stayed friends for ever.
  en {a} and {b} ate {food} together and talked about {dream}.
  en {a} and {b} spent the rest of the day {hobby}.
  en {a} laughed, and {b} laughed too.
  en {a} and {b} walked home together, singing all the way.
  zh {a}和{b}一直是好朋友。
  zh {a}和{b}一起吃{food}，聊起了{dream}。
  zh 那天剩下的时间，{a}和{b}一起{hobby}。
  zh {a}笑了，{b}也笑了。
  zh {a}和{b}唱着歌，一起走回家去。
moral:
  en "It is good to have a friend," said {a}.
  en Nobody was as {trait} as {a}.
  en Good friends help each other.
  en A true friend is worth more than gold.
  zh {a.sub}说：“有朋友真好。”
  zh 没有人比{a}更{trait}了。
  zh 好朋友就要互相帮助。
  zh 真正的朋友比金子还宝贵。
evening:
  en {then} it was time to go home and eat {food}.
  en The sun went down, and {noise}.
  en The moon rose over {place.to}.
  zh 天色晚了，该回家吃{food}了。
  zh 太阳下山了，{noise}。
  zh 月亮升到了{place.to}的上空。
day: at a := place
  en {time}, {a.sub} went to {place.to}.
  en {time}, {a.sub} set off for {place.to}.
  en {time}, {a.sub} walked all the way to {place.to}.
  zh {time}，{a.sub}去了{place.to}。
  zh {time}，{a.sub}来到{place.to}。
  zh {time}，{a.sub}高高兴兴地走到{place.to}。
tell: hint a = b
  en {b} told {a} that {C}.
  en "Listen, {a}, I heard that {C}," said {b}.
  en {b} thought for a while and told {a} that {C}.
  zh {b}告诉{a}，{C}。
  zh {b}说：“{a}，听说{C}。”
  zh {b}想了一会儿，对{a}说，{C}。
C say:
  en {c} said that {C}
  en {c} was sure that {C}
  en {c} had heard that {C}
  en {c} remembered that {C}
  zh {c}说{C}
  zh {c}相信{C}
  zh {c}听说{C}
  zh {c}记得{C}
Q wore: wears a == garment ; hue a == colour
  en Question: What colour was {a}'s {garment}? Answer: {colour}
  zh 问题：{a}的{garment}是什么颜色的？答案：{colour}
Q shod: shoes a == feet ; tint a == colour2
  en Question: What colour were {a}'s {feet}? Answer: {colour2}
  zh 问题：{a}的{feet}是什么颜色的？答案：{colour2}
Q meal: meal a == food ; side a == food2
  en Question: What did {a} eat? Answer: {food} and {food2}
  zh 问题：{a}吃了什么？答案：{food}和{food2}
Q age: age a == n
  en Question: How old was {a}? Answer: {n}
  zh 问题：{a}几岁？答案：{n}岁
Q likes: likes a == hobby
  en Question: What did {a} like? Answer: {hobby}
  zh 问题：{a}喜欢什么？答案：{hobby}
Q colour: colour item == colour
  en Question: What colour was the {item}? Answer: {colour}
  zh 问题：{item}是什么颜色的？答案：{colour}
Q where: place item == place
  en Question: Where was the {item}? Answer: {place}
  zh 问题：{item}在哪里？答案：{place}
Q hint: hint a == b
  en Question: Who told {a} about it? Answer: {b}
  zh 问题：是谁告诉{a}的？答案：{b}
Q home: home a == home
  en Question: Where did {a} live? Answer: {home}
  zh 问题：{a}住在哪里？答案：{home}
Q friend: friend a == b ; rel b == rel
  en Question: What was the name of {a}'s {rel}? Answer: {b}
  zh 问题：{a}的{rel}叫什么名字？答案：{b}
Q howmany: count a things == j
  en Question: How many {things.pl} did {a} have in the end? Answer: {j}
  zh 问题：{a}最后有几{things.cl}{things}？答案：{j}{things.cl}
Q total: total things == j
  en Question: How many {things.pl} did they have together? Answer: {j}
  zh 问题：他们一共有几{things.cl}{things}？答案：{j}{things.cl}
Q each: each things == k
  en Question: How many {things.pl} did each child get? Answer: {k}
  zh 问题：每个孩子分到几{things.cl}{things}？答案：{k}{things.cl}
Q money: count a coins == j
  en Question: How many coins did {a} have left? Answer: {j}
  zh 问题：{a}还剩几枚硬币？答案：{j}枚
Q price: price item == k
  en Question: How many coins did the {item} cost? Answer: {k}
  zh 问题：{item}花了几枚硬币？答案：{k}枚
Q grown: planted crop == j
  en Question: How many {crop.pl} grew tall? Answer: {j}
  zh 问题：有几{crop.cl}{crop}长大了？答案：{j}{crop.cl}
Q thief: thief crop == animal
  en Question: Which animal spoiled the {crop.pl}? Answer: the {animal}
  zh 问题：是什么动物糟蹋了{crop}？答案：{animal}
Q first: rank first == a
  en Question: Who won the race? Answer: {a}
  zh 问题：谁得了第一名？答案：{a}
Q last: rank last == a
  en Question: Who was last? Answer: {a}
  zh 问题：谁是最后一名？答案：{a}
Q owner: owner item == a
  en Question: Who had the {item} in the end? Answer: {a}
  zh 问题：{item}最后归谁了？答案：{a}
Q next: next place == place2
  en Question: Where did {a} go after {place.to}? Answer: {place2.to}
  zh 问题：{a}离开{place.to}以后去了哪里？答案：{place2.to}
Q saw: saw place == animal
  en Question: What did {a} see {place}? Answer: {animal.a}
  zh 问题：{a}在{place}看见了什么？答案：一只{animal}
Q stuck: place animal == place
  en Question: Where was the {animal} found? Answer: {place}
  zh 问题：{animal}是在哪里被发现的？答案：{place}
Q species: species pet == animal
  en Question: What kind of animal was {pet}? Answer: {animal.a}
  zh 问题：{pet}是什么动物？答案：一只{animal}
Q met: at c == place
  en Question: Where was {c}? Answer: {place}
  zh 问题：{c}在哪里？答案：{place}
Q really: place item == spot
  en Question: Where was the {item} really? Answer: {spot}
  zh 问题：{item}其实在哪里？答案：{spot}
Q mover: belief b item == spot2 ; place item == spot2
  en Question: Who hid the {item} {spot2}? Answer: {b}
  zh 问题：是谁把{item}藏到{spot2}的？答案：{b}
Q looked: looked a item == spot
  en Question: Where did {a} think the {item} was? Answer: {spot}
  zh 问题：{a}以为{item}在哪里？答案：{spot}
Q inside: inside item == holder
  en Question: What was the {item} in? Answer: the {holder}
  zh 问题：{item}在什么里面？答案：{holder}
Q holder: inside holder2 == holder
  en Question: What was inside the {holder}? Answer: the {holder2}
  zh 问题：{holder}里面是什么？答案：{holder2}
Q target: target x == y ; deed x == verb
  en Question: Which animal {verb} the {y}? Answer: the {x}
  zh 问题：哪只动物{verb}了{y}？答案：{x}
Q taken: target x == y ; deed x == took
  en Question: Which animal {took} the {y}? Answer: the {x}
  zh 问题：哪只动物{took}了{y}？答案：{x}
""".strip()
