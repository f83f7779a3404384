// The search puts chapters before the reference, whose pages name everything.
var Scorer = {
  score: ([page, title, anchor, words, score]) => (page.startsWith("book/reference/") ? score / 20 : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
