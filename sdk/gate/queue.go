// SPDX-License-Identifier: Apache-2.0

package gate

import "slices"

// waiter is a visit that waits.
type waiter struct {
	Visit
	caller string     // whose turn it takes
	in     chan error // gets nil when it is let in, or why it is refused; has room for it
}

// queue holds those of one class who wait: a line for each caller, the callers by turns.
// The zero value is empty.
type queue struct {
	lines []*line // in the order of their turns; none is empty
	of    map[string]*line
	len   int // of all lines
}

// line is what waits of one caller, first come first.
type line struct {
	caller  string
	waiters []*waiter
}

func (q *queue) add(w *waiter) {
	l := q.of[w.caller]
	if l == nil {
		if q.of == nil {
			q.of = make(map[string]*line)
		}
		l = &line{caller: w.caller}
		q.of[w.caller] = l
		q.lines = append(q.lines, l)
	}
	l.waiters = append(l.waiters, w)
	q.len++
}

// first takes out whose turn it is among the callers who may; nil if none of those waits.
func (q *queue) first(may func(caller string) bool) *waiter {
	i := slices.IndexFunc(q.lines, func(l *line) bool { return may(l.caller) })
	if i < 0 {
		return nil
	}
	l := q.lines[i]
	w := l.waiters[0]
	l.waiters[0] = nil
	l.waiters = l.waiters[1:]
	q.len--
	q.lines = slices.Delete(q.lines, i, i+1)
	if len(l.waiters) > 0 {
		q.lines = append(q.lines, l)
	} else {
		delete(q.of, l.caller)
	}
	return w
}

// dropLast takes out the last one of the longest line. The queue must not be empty.
func (q *queue) dropLast() *waiter {
	longest := slices.MaxFunc(q.lines, func(a, b *line) int { return len(a.waiters) - len(b.waiters) })
	w := longest.waiters[len(longest.waiters)-1]
	q.remove(w)
	return w
}

// remove takes out w and reports whether it was there.
func (q *queue) remove(w *waiter) bool {
	l := q.of[w.caller]
	if l == nil {
		return false
	}
	i := slices.Index(l.waiters, w)
	if i < 0 {
		return false
	}
	l.waiters = slices.Delete(l.waiters, i, i+1)
	q.len--
	if len(l.waiters) == 0 {
		delete(q.of, l.caller)
		q.lines = slices.DeleteFunc(q.lines, func(other *line) bool { return other == l })
	}
	return true
}
