"""The second half of the phrase book: the events of the single plots.

Not in the paper: this project's own data, in the form that `minids.phrases` explains: `name: effects`,
then the ways to say it.
Differs from the paper: nothing, the paper has no such part.
Left out: the sentences that any tale may use, and the questions; they are in `phrases`.
Notebook: 01_tokens.
"""

EVENTS = """
miss: owner item == a ; lost item = a
  en {time}, {a.sub} could not find {a.own} {item}.
  en But {time}, the {item} that belonged to {a} was gone.
  en {time}, {a.sub} saw that {a.own} {item} was missing.
  zh {time}，{a.sub}找不到{a.own}{item}了。
  zh 可是{time}，{a}的{item}不见了。
  zh {time}，{a.sub}发现{a.own}{item}丢了。
search: not place item = place ; not place item = place2
  en {a.sub} looked for the {item} {place} and {place2}, but it was not there.
  en {then} {a.sub} searched {place} and {place2}, but there was no {item}.
  zh {a.sub}在{place}和{place2}找了又找，都没有{item}。
  zh {then}，{a.sub}在{place}和{place2}寻找{item}，都没有找到。
ask: owner item == a
  en {a.sub} asked {b.obj}, "Have you seen my {item}?"
  en "Do you know where my {item} is?" asked {a}.
  zh {a.sub}问{b.obj}：“你看见我的{item}了吗？”
  zh {a.sub}对{b.obj}说：“我的{item}不见了，你知道它在哪里吗？”
C saw: place item = place
  en the {item} was {place}
  en someone had left the {item} {place}
  zh {item}就在{place}
  zh 有人把{item}忘在了{place}
C waits: at c = place ; meet = place
  en {c} was waiting {place}
  en {c} was sitting {place}
  zh {c}正在{place}等着
  zh {c}正坐在{place}
find: place item = place ; finder item = a
  en {a.sub} ran to {place.to}, and there was the {item}!
  en At last {a.sub} found the {item} {place}.
  en {then}, {place}, {a.sub} found the {item}.
  zh {a.sub}跑到{place.to}，{item}果然在那里！
  zh 最后，{a.sub}在{place}找到了{item}。
  zh {then}，{a.sub}就在{place}找到了{item}。
shine: colour item == colour
  en The {colour} {item} shone in the sun.
  en It was the same {colour} {item} as before.
  zh {colour}的{item}在阳光下闪闪发亮。
  zh 还是那{item.cl}{colour}的{item}。
careful: owner item == a
  en From then on, {a.sub} always took good care of the {item}.
  en {a.sub} never lost the {item} again.
  zh 从那以后，{a.sub}总是好好爱护{item}。
  zh {a.sub}再也没有弄丢过{item}。
has: new things ; count a things += n
  en {a.sub} had {n} {things.n} in {a.own} basket.
  en {a.sub} took {n} {things.n} along.
  en {a.sub} had brought {n} {things.n} from home.
  en {a.sub} was carrying a bag with {n} {things.n} in it.
  zh {a.sub}的篮子里有{n}{things.cl}{things}。
  zh {a.sub}带着{n}{things.cl}{things}。
  zh {a.sub}从家里带来了{n}{things.cl}{things}。
  zh {a.sub}提着一个袋子，里面有{n}{things.cl}{things}。
hasmore: count b things += m
  en {b} had {m} {things.m} too.
  en {b} came with {m} {things.m} of {b.own} own.
  zh {b}也有{m}{things.cl}{things}。
  zh {b}也带来了{m}{things.cl}{things}。
picks: at a == place ; count a things += m
  en {a.sub} found {m} more {things.m} {place}.
  en {then}, {place}, {a.sub} picked up {m} {things.m}.
  en {then} {a.sub} saw {m} {things.m} lying {place} and took them.
  zh {a.sub}在{place}又找到{m}{things.cl}{things}。
  zh {then}，{a.sub}在{place}捡到{m}{things.cl}{things}。
  zh {then}，{a.sub}看见{place}有{m}{things.cl}{things}，就捡了起来。
drops: count a things -= m
  en But {a.sub} dropped {m} {things.m} on the way.
  en {then} {a.sub} tripped over a root and lost {m} {things.m}.
  zh 可是{a.sub}在路上弄丢了{m}{things.cl}{things}。
  zh {then}，{a.sub}绊了一跤，丢了{m}{things.cl}{things}。
beg:
  en "May I have some, please?" asked {b}.
  en {b} had none and looked a little {gloom}.
  zh {b}问：“可以给我一点吗？”
  zh {b}什么也没有，看上去有点{gloom}。
gives: count a things -= k ; count b things += k
  en {a.sub} gave {k} {things.k} to {b.obj}.
  en "Here, take {k} {things.k}," {a.sub} said to {b.obj}.
  en {then} {a.sub} smiled and handed {k} {things.k} to {b.obj}.
  zh {a.sub}给了{b.obj}{k}{things.cl}{things}。
  zh {a.sub}对{b.obj}说：“送你{k}{things.cl}{things}。”
  zh {then}，{a.sub}笑着把{k}{things.cl}{things}递给{b.obj}。
now: count a things == j
  en Now {a.sub} had {j} {things.j}.
  en {a.sub} counted {a.own} {things.pl} and had {j}.
  zh 现在{a.sub}有{j}{things.cl}{things}。
  zh {a.sub}数了数{things}，有{j}{things.cl}。
left: count a things == j
  en So {a.sub} had {j} {things.j} left.
  en {a.sub} kept {j} {things.j}.
  en That left {a} with {j} {things.j}.
  zh 这样，{a.sub}还有{j}{things.cl}{things}。
  zh {a.sub}自己留下{j}{things.cl}{things}。
together: total things == j
  en Together they had {j} {things.j}.
  en They put all the {things.pl} in a row and counted {j}.
  zh 他们一共有{j}{things.cl}{things}。
  zh 他们把{things}排成一排，一数，一共{j}{things.cl}。
split: times m k == j ; each things = k
  en They shared the {j} {things.j} among {m} children, so each child got {k}.
  en There were {j} {things.j} for {m} children, and each child got {k}.
  zh {m}个孩子平分{j}{things.cl}{things}，每人得到{k}{things.cl}。
  zh {j}{things.cl}{things}分给{m}个孩子，每人{k}{things.cl}。
coins: count a coins += n
  en {a.sub} had {n} coins in {a.own} pocket.
  en {a.sub} had saved {n} coins.
  en Grandmother gave {a.obj} {n} coins.
  zh {a.sub}的口袋里有{n}枚硬币。
  zh {a.sub}攒了{n}枚硬币。
  zh 奶奶给了{a.obj}{n}枚硬币。
buy: new item ; count a coins -= k ; owner item = a ; colour item = colour ; price item = k
  en {then} {a.sub} bought {colour.a} {item} for {k} coins.
  en {a.sub} chose {colour.a} {item} that cost {k} coins.
  en {a.sub} saw {colour.a} {item} and paid {k} coins for it.
  en "That will be {k} coins," said the man, and {a} took {colour.a} {item}.
  zh {then}，{a.sub}花{k}枚硬币买了一{item.cl}{colour}的{item}。
  zh {a.sub}看中了一{item.cl}{colour}的{item}，付了{k}枚硬币。
  zh {a}选了一{item.cl}{colour}的{item}，老板说：“一共{k}枚硬币。”
purse: count a coins == j
  en Now {a.sub} had {j} coins left.
  en {a.sub} counted the rest and had {j} coins.
  zh {a.sub}还剩{j}枚硬币。
  zh {a.sub}数了数，还有{j}枚硬币。
plant: new crop ; planted crop := n ; place crop = place
  en {a.sub} planted {n} {crop.n} {place}.
  en {place}, {a.sub} dug {n} little holes and put in {n} {crop.n}.
  zh {a.sub}在{place}种下了{n}{crop.cl}{crop}。
  zh {a.sub}在{place}挖了{n}个小坑，种下{n}{crop.cl}{crop}。
ate: new animal ; planted crop -= k ; thief crop = animal
  en But {animal.a} came in the night and ate {k} of the {crop.pl} that {a} had planted.
  en The next day {animal.a} dug up {k} of the {crop.pl} that belonged to {a}.
  zh 可是夜里来了一只{animal}，吃掉了{a}种的{k}{crop.cl}{crop}。
  zh 第二天，一只{animal}刨出了{a}种的{k}{crop.cl}{crop}。
water:
  en {a} watered the garden every morning, and {b} pulled out the weeds.
  en Every day {a} and {b} carried water from the well.
  zh {a}每天早上浇水，{b}帮忙拔草。
  zh {a}和{b}每天从井里打水来浇。
grew: planted crop == j
  en In the end {j} of the {crop.pl} that {a} had planted grew tall.
  en When summer came, {j} {crop.j} stood tall, and {a} danced with joy.
  zh 最后，{a}种的{crop}有{j}{crop.cl}长大了。
  zh 到了夏天，{j}{crop.cl}{crop}长得高高的，{a}高兴得跳起舞来。
race: goal = place
  en {time}, {a}, {b} and {c} ran a race to {place.to}.
  en {time}, {a} said to {b} and {c}, "Let us run to {place.to}!"
  zh {time}，{a}、{b}和{c}赛跑，看谁先到{place.to}。
  zh {time}，{a}对{b}和{c}说：“我们跑到{place.to}去吧！”
faster: faster a b = yes ; faster b a = no
  en {a} was faster than {b}.
  en {b} ran well, but {a} ran past {b.him}.
  en {b} could not keep up with {a}.
  zh {a}比{b}跑得快。
  zh {b}跑得不慢，可是{a}超过了{b.him}。
  zh {b}追不上{a}。
podium: faster a b = yes ; faster b c = yes ; rank first = a ; rank second = b ; rank last = c
  en {a} came first, {b} came second and {c} came last.
  en So {a} won the race, {b} was second, and {c} was last.
  zh {a}得了第一名，{b}得了第二名，{c}是最后一名。
  zh 于是{a}赢了，{b}第二个到，{c}最后一个到。
prize: rank first == a ; new item ; owner item = a ; colour item = colour
  en The prize was {colour.a} {item}, and {a} took it home.
  en {a} got {colour.a} {item} as a prize.
  zh 奖品是一{item.cl}{colour}的{item}，{a}把它带回了家。
  zh {a}得到了一{item.cl}{colour}的{item}作为奖品。
cheer: rank last == c
  en "Do not worry, {c}, you ran well," said {b}.
  en {b} ran back to {c} and took {c.him} by the hand.
  zh {b}说：“{c}，别难过，你跑得很好。”
  zh {b}跑回{c}身边，拉起了{c.him}的手。
admire: owner item == a
  en "What a fine {item} you have, {a}," said {b}.
  en {b} liked {a}'s {item} very much.
  en "May I look at your {item}, {a}?" asked {b}.
  zh {b}说：“{a}，你的{item}真好看。”
  zh {b}看着{a}的{item}，羡慕极了。
  zh {b}问：“{a}，可以让我看看你的{item}吗？”
swap: owner item == a ; owner item2 == b ; owner item := b ; owner item2 := a
  en So {a} gave the {item} to {b}, and {b} gave the {item2} to {a}.
  en They made a swap: {b} took the {item}, and {a} took the {item2}.
  zh 于是{a}把{item}给了{b}，{b}把{item2}给了{a}。
  zh 他们交换了东西：{b}拿走{item}，{a}拿走{item2}。
lend: owner item == a ; holds item := b
  en {a} lent the {item} to {b} until the next day.
  en {b} was allowed to keep {a}'s {item} for one night.
  zh {a}把{item}借给{b}玩一天。
  zh {b}可以借用{a}的{item}一个晚上。
goes: at a == place ; next place = place2 ; at a := place2
  en {then} {a.sub} walked on from {place.to} to {place2.to}.
  en When {a.sub} left {place.to}, {a.he} went to {place2.to}.
  zh {then}，{a.sub}从{place.to}走到了{place2.to}。
  zh 离开{place.to}以后，{a.sub}又去了{place2.to}。
sees: new animal ; at a == place ; saw place = animal
  en {place}, {a.sub} saw {animal.a}.
  en {a.sub} met {animal.a} {place}.
  zh 在{place}，{a.sub}看见一只{animal}。
  zh {a.sub}在{place}遇见了一只{animal}。
greet:
  en The {animal} looked at {a.obj} and went on its way.
  en "Good day, little {animal}," said {a}.
  en {a.sub} gave the {animal} some {food}.
  zh {animal}看了看{a.obj}，就走开了。
  zh {a.sub}说：“你好呀，{animal}。”
  zh {a.sub}给了{animal}一点{food}。
stuck: new animal ; place animal = place
  en {time}, {a.sub} heard a cry: {place} {animal.a} was stuck in the mud.
  en {time}, {a.sub} saw {animal.a} that was caught in a net {place}.
  zh {time}，{a.sub}听见叫声，原来{place}有一只{animal}陷在泥里。
  zh {time}，{a.sub}看见{place}有一只{animal}被网缠住了。
heavy:
  en {a.sub} tried to pull the {animal} out, but {a.he} was not strong enough.
  en {a.sub} could not free the {animal} alone.
  zh {a.sub}想把{animal}拉出来，可是力气不够。
  zh {a.sub}一个人救不了{animal}。
call:
  en {a.sub} called, "{b}, come quickly, the {animal} needs help!"
  en {a.sub} ran to fetch {b.obj}.
  zh {a.sub}喊道：“{b}，快来，{animal}需要帮助！”
  zh {a.sub}跑去找{b.obj}。
free: helper animal = b
  en {b} came with a long rope, and together they saved the {animal}.
  en {b} pulled while {a} pushed, and the {animal} was free.
  zh {b}带着一根长绳子赶来，两个人一起救出了{animal}。
  zh {b}在前面拉，{a}在后面推，{animal}得救了。
name: new pet ; species pet = animal
  en {a} named the {animal} {pet}.
  en "I will call you {pet}," {a} told the {animal}.
  zh {a}给{animal}起名叫{pet}。
  zh {a}对{animal}说：“我就叫你{pet}吧。”
petend:
  en {pet} came to visit them every day.
  en {pet} loved {food} and was never lonely again.
  zh {pet}每天都来看他们。
  zh {pet}爱吃{food}，再也不孤单了。
birthday: birthday = b
  en {time}, {a.sub} remembered that it was {b.pos} birthday.
  en "Tomorrow is {b}'s birthday," {a.sub} thought.
  zh {time}，{a.sub}想起这天是{b}的生日。
  zh {a.sub}心想：“明天是{b}的生日。”
gift: new item ; owner item = a ; colour item = colour
  en {a.sub} took {colour.a} {item} and wrapped it in paper.
  en {a.sub} put {colour.a} {item} in a box with a bow.
  zh {a.sub}拿出一{item.cl}{colour}的{item}，用纸包好。
  zh {a.sub}把一{item.cl}{colour}的{item}放进系着蝴蝶结的盒子里。
guess:
  en {b.sub} asked, "Is it {guess.a}?"
  en "Perhaps it is {guess.a}," said {b}.
  zh {b.sub}问：“是{guess}吗？”
  zh {b.sub}猜道：“也许是{guess}吧。”
wrong:
  en "No, it is not {guess.a}," said {a}.
  en {a.sub} laughed and said that it was not {guess.a}.
  zh {a.sub}说：“不，不是{guess}。”
  zh {a.sub}笑着说，那不是{guess}。
unwrap: birthday == b ; owner item := b
  en {then} {b} opened the present, and it was the {item}!
  en {b} pulled off the paper, held up the {item} and was very {glad}.
  zh {then}，{b}打开礼物，原来是{item}！
  zh {b}拆开包装，举起了{item}，非常{glad}。
off:
  en {a.sub} hurried to {place.to} at once.
  en {a.sub} ran to {place.to} as fast as {a.he} could.
  zh {a.sub}马上赶往{place.to}。
  zh {a.sub}飞快地跑向{place.to}。
meet: at c == place
  en There, {place}, {a} found {c} at last.
  en And really, {c} was there {place} and waved to {a}.
  zh {a}果然在{place}找到了{c}。
  zh {c}真的在{place}，正在向{a}招手。
wonder:
  en {time}, {a.sub} asked, "Where can {c} be?"
  en {time}, {a} wanted to play with {c} but could not find {c.him}.
  zh {time}，{a.sub}问：“{c}在哪里呢？”
  zh {time}，{a}想和{c}一起玩，却找不到{c.him}。
put: place item := spot ; belief a item := spot ; belief b item := spot
  en {a} put the {item} {spot} while {b} was watching, and went out.
  en {b} saw how {a} put the {item} {spot} and left the room.
  zh {a}当着{b}的面把{item}放在{spot}，就出去了。
  zh {b}看见{a}把{item}放在{spot}，然后离开了房间。
moves: place item == spot ; place item := spot2 ; belief b item := spot2
  en While {a} was away, {b} moved the {item} that was {spot} and hid it {spot2}.
  en {b} took the {item} that was {spot} and put it {spot2}, but {a} did not see it.
  zh {a}不在的时候，{b}把{spot}的{item}藏到了{spot2}。
  zh {b}拿走{spot}的{item}，放到了{spot2}，{a}没有看见。
thinks: belief a item == spot ; looked a item := spot
  en {a} came back and thought that the {item} was still {spot}.
  en When {a} came back, {a.he} wanted to take the {item} and looked {spot}.
  zh {a}回来了，以为{item}还在{spot}。
  zh {a}回来想拿{item}，就在{spot}找。
knows:
  en {b} knew that {C}.
  en {b} smiled, for {b.he} knew that {C}.
  zh {b}知道{C}。
  zh {b}笑了，因为{b.he}知道{C}。
C believes: belief a item == spot
  en {a} thought that the {item} was {spot}
  en {a} believed that the {item} was still {spot}
  zh {a}以为{item}在{spot}
  zh {a}相信{item}还在{spot}
C aware:
  en {b} knew that {C}
  en {b} was aware that {C}
  zh {b}知道{C}
  zh {b}明白{C}
shows: place item == spot ; belief a item := spot
  en "Look, the {item} is {spot}," said {b}, and {a} laughed.
  en In the end {b} showed {a} that the {item} was {spot}.
  zh {b}对{a}说：“你看，{item}在{spot}。”
  zh 最后{b}告诉{a}，{item}在{spot}。
hide: inside item = Y
  en {a.sub} hid the {item} in {Y}.
  en {a.sub} put the {item} in {Y} so that nobody could find it.
  zh {a.sub}把{item}藏在{Y}里。
  zh {a.sub}把{item}放进{Y}里，不让别人找到。
Y plain:
  en the {holder}
  zh {holder}
Y within: inside holder = Y
  en the {holder} that was inside {Y}
  en the {holder} that stood in {Y}
  zh {Y}里的{holder}
  zh {Y}里面那个{holder}
opens: inside holder2 == holder
  en {b} opened the {holder} and found the {holder2}.
  en {then} {b} looked into the {holder}, and there was the {holder2}.
  zh {b}打开{holder}，看见了{holder2}。
  zh {then}，{b}往{holder}里一看，里面是{holder2}。
gets: inside item == holder ; finder item = b
  en {then}, in the {holder}, {b} found the {item}!
  en At last {b} took the {item} out of the {holder}.
  zh {then}，{b}在{holder}里找到了{item}！
  zh 最后，{b}从{holder}里拿出了{item}。
seek:
  en {time}, {b} came and asked, "Where is the {item}?"
  en {time}, {b} wanted to find the {item}.
  zh {time}，{b}跑来问：“{item}在哪里？”
  zh {time}，{b}想找到{item}。
bakes: new x ; owner x = a
  en {time}, {a.sub} made {x.a} and put it on the windowsill.
  en {time}, {a.sub} left {x.a} on the table.
  zh {time}，{a.sub}做了{x}，放在窗台上。
  zh {time}，{a.sub}把{x}忘在了桌子上。
steals: new x ; deed x = took ; target x = X
  en Along came a {x} that {took} {X}.
  en {then} {x.a} {took} {X}.
  zh 这时来了一只{x}，{took}了{X}。
  zh {then}，一只{x}{took}了{X}。
chases: new x ; deed x = verb ; target x = X
  en {then} {x.a} {verb} {X}.
  en {then} {x.a} came out of the {wild} and {verb} {X}.
  zh {then}，一只{x}{verb}了那只{X}。
  zh {then}，一只{x}从{wild}里跑来，{verb}了那只{X}。
X thing:
  en the {x}
  zh {x}
X thief: deed x == took ; target x == X
  en the {x} that {took} {X}
  zh {took}{X}的{x}
X doer: deed x == verb ; target x == X
  en the {x} that {verb} {X}
  zh {verb}那只{X}的{x}
scolds:
  en "What a noise," said {a} to {X}.
  en {a} looked out of the window and saw {X}.
  en {a} gave some {food} to {X}.
  zh {a}看见了那只{X}。
  zh {a}给了那只{X}一点{food}。
  zh {a}摸了摸那只{X}。
""".strip()
