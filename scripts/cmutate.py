# SPDX-License-Identifier: GPL-2.0-or-later
"""
Small changes to C code that a good test notices.

Works on tokens: comments, strings and preprocessor lines (but for constants)
stay as they are, and no change adds or removes a line.
"""

import re
from dataclasses import dataclass

TOKEN = re.compile(r'''
    (?P<skip>/\*.*?\*/ | //[^\n]* | \s+)
  | (?P<cpp>\#(?:\\\n|/\*.*?\*/|[^\n])*)
  | (?P<string>"(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*')
  | (?P<number>(?:0[xX][0-9a-fA-F]+|\d+)[uUlL]*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<op><<=|>>=|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=
       |\.\.\.|[-+*/%&|^~!<>=?:;,.(){}\[\]])
''', re.X | re.S)

SWAPS = {'<': '<=', '<=': '<', '>': '>=', '>=': '>', '==': '!=', '!=': '==',
         '&&': '||', '||': '&&', '+=': '-=', '-=': '+=', '++': '--',
         '--': '++', '|=': '&=', '&=': '|=', '<<': '>>', '>>': '<<',
         'true': 'false', 'false': 'true', 'MIN': 'MAX', 'MAX': 'MIN'}
BINARY = {'+': '-', '-': '+', '*': '/', '/': '*', '%': '*', '&': '|',
          '|': '&'}
# Constants that stand for a state or a kind become the next of their set
SETS = [
    ['MUX_STREAM_OPENING', 'MUX_STREAM_OPEN', 'MUX_STREAM_FINISHING',
     'MUX_STREAM_FINISHED', 'MUX_STREAM_RESET'],
    ['MUX_PENDING_RESET', 'MUX_PENDING_OPEN_OK', 'MUX_PENDING_WINDOW',
     'MUX_PENDING_FIN', 'MUX_PENDING_FIN_OK'],
    ['MUX_CODE_OK', 'MUX_CODE_PROTOCOL', 'MUX_CODE_INCOMPATIBLE',
     'MUX_CODE_TIMEOUT', 'MUX_CODE_LIMIT', 'MUX_CODE_REFUSED',
     'MUX_CODE_ABORTED'],
    ['MUX_EVENT_HELLO', 'MUX_EVENT_OPEN', 'MUX_EVENT_OPEN_OK',
     'MUX_EVENT_READABLE', 'MUX_EVENT_WRITABLE', 'MUX_EVENT_FIN',
     'MUX_EVENT_FIN_OK', 'MUX_EVENT_RESET', 'MUX_EVENT_ENDED'],
    ['MUX_FRAME_OPEN', 'MUX_FRAME_OPEN_OK', 'MUX_FRAME_DATA',
     'MUX_FRAME_WINDOW', 'MUX_FRAME_FIN', 'MUX_FRAME_FIN_OK',
     'MUX_FRAME_RESET', 'MUX_FRAME_PING', 'MUX_FRAME_PONG',
     'MUX_FRAME_GOAWAY'],
]
# Statements that only check, and that C wants
NOT_DELETED = re.compile(r'g_assert|g_return|trace_|va_(start|end)\b')
NOT_STATEMENTS = {'if', 'for', 'while', 'do', 'switch', 'else', 'case',
                  'default', 'goto'}


@dataclass(frozen=True)
class Mutant:
    """Replace text[start:end]; what is changed reads @old -> @new."""
    start: int
    end: int
    text: str
    old: str
    new: str

    def apply(self, text):
        return text[:self.start] + self.text + text[self.end:]


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int

    @property
    def end(self):
        return self.start + len(self.text)


def tokens(text):
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise ValueError(f'no token of C: {text[at:at + 20]!r}')
        if match.lastgroup != 'skip':
            found.append(Token(match.lastgroup, match.group(), at))
        at = match.end()
    return found


def swap(token, new):
    return Mutant(token.start, token.end, new, token.text, new)


def is_value(token):
    """Can an operand end here?"""
    return token.kind == 'number' or token.text in (')', ']') or (
        token.kind == 'name' and token.text not in ('return', 'case', 'sizeof')
        and not is_type(token.text))


def is_type(name):
    return bool(re.match(r'[A-Z][A-Za-z]*[a-z]\w*$', name)) or name in (
        'void', 'char', 'int', 'unsigned', 'bool', 'iovec', 'const',
        'gpointer') or name.endswith('_t')


def constants(token):
    digits = re.match(r'0[xX][0-9a-fA-F]+|\d+', token.text).group()
    suffix = token.text[len(digits):]
    value = int(digits, 0)
    return [swap(token, f'{new}{suffix}')
            for new in (value + 1, value - 1) if new >= 0]


def of_operators(listed):
    for before, token in zip(listed, listed[1:]):
        if token.text in SWAPS:
            yield swap(token, SWAPS[token.text])
        elif token.text in BINARY and is_value(before):
            yield swap(token, BINARY[token.text])
        elif token.text in ('-', '!', '~') and not is_value(before):
            yield Mutant(token.start, token.end, '', token.text, 'nothing')
        elif token.kind == 'number':
            yield from constants(token)
        for names in SETS:
            if token.text in names and token.kind == 'name':
                at = names.index(token.text)
                yield swap(token, names[(at + 1) % len(names)])


def without_asserts(listed):
    """An assertion is a check itself."""
    end = -1
    for i, token in enumerate(listed):
        if token.text in ('g_assert', 'G_STATIC_ASSERT'):
            end = closing(listed, i + 1)
        if i > end:
            yield token


def closing(listed, at):
    """The index of the parenthesis that closes the one at @at."""
    depth = 0
    for i in range(at, len(listed)):
        depth += listed[i].text == '('
        depth -= listed[i].text == ')'
        if not depth:
            return i
    raise ValueError('a parenthesis is not closed')


def of_conditions(listed):
    for i, token in enumerate(listed):
        if token.text in ('if', 'while') and token.kind == 'name':
            first, last = listed[i + 1], listed[closing(listed, i + 1)]
            yield Mutant(first.start, first.end, '(!(', token.text,
                         f'{token.text} not'), last


def statement_starts(listed):
    """Indices of tokens that begin a statement in a function."""
    depth, heads = 0, set()
    for i, token in enumerate(listed):
        if token.kind == 'name' and listed[i + 1:] and \
                token.text in ('if', 'for', 'while', 'switch'):
            heads.add(closing(listed, i + 1))
        if depth and token.text in ('{', '}', ';', ':', 'else') or i in heads:
            yield i + 1
        elif token.text == '{':         # a function, or a table
            if i and listed[i - 1].text == ')':
                yield i + 1
        depth += token.text == '{'
        depth -= token.text == '}'


def of_statements(text, listed):
    for i in statement_starts(listed):
        if i >= len(listed) or listed[i].kind != 'name' or \
                listed[i].text in NOT_STATEMENTS:
            continue
        depth = 0
        for token in listed[i:]:
            depth += (token.text in '([{') - (token.text in ')]}')
            if depth < 0 or token.text == ';' and not depth:
                break
        start, end = listed[i].start, token.start
        code = text[start:end]
        if depth or token.text != ';' or NOT_DELETED.match(code):
            continue
        yield Mutant(start, end, '\n' * code.count('\n'),
                     ' '.join(code.split()), 'nothing')


def of_defines(text, token):
    match = re.match(r'#define\s+(\w+)\s+(.*?)\s*(?:/\*.*)?$', token.text,
                     re.S)
    if match and re.fullmatch(r'[\d\sxXuULl*()]+', match.group(2)):
        start = token.start + match.start(2)
        value = match.group(2)
        for sign in '+-':
            yield Mutant(start, start + len(value), f'(({value}) {sign} 1)',
                         match.group(1), f'{match.group(1)} {sign} 1')


def mutants(text):
    """All changes to a C file, in the order of their place in it."""
    listed = tokens(text)
    found = [mutant for token in listed if token.kind == 'cpp'
             for mutant in of_defines(text, token)]
    listed = [token for token in listed if token.kind != 'cpp']
    found += of_operators(list(without_asserts(listed)))
    for first, last in of_conditions(listed):
        found.append(Mutant(first.start, last.end,
                            first.text + text[first.end:last.start] + '))',
                            first.old, first.new))
    found += of_statements(text, listed)
    return sorted(set(found), key=lambda m: (m.start, m.end, m.text))
