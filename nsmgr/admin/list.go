// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/watch"
)

// list is what one caller is being told, T being the message of an item. A
// caller that watches is told what differs from what it knows.
type list[T proto.Message] struct {
	send func(adminv1.EventType, T) error
	told map[string]T // what the caller knows, by key; nil if it does not watch
}

func newList[T proto.Message](f *adminv1.Filter, send func(adminv1.EventType, T) error) *list[T] {
	l := &list[T]{send: send}
	if f.GetWatch() {
		l.told = make(map[string]T)
	}
	return l
}

// show tells the caller how an item is.
func (l *list[T]) show(key string, item T) error {
	if l.told == nil {
		return l.send(adminv1.EventType_EVENT_TYPE_ADDED, item)
	}
	old, known := l.told[key]
	l.told[key] = item
	switch {
	case !known:
		return l.send(adminv1.EventType_EVENT_TYPE_ADDED, item)
	case !proto.Equal(old, item):
		return l.send(adminv1.EventType_EVENT_TYPE_MODIFIED, item)
	}
	return nil
}

// hide tells a caller that an item is not in its list any more.
func (l *list[T]) hide(key string) error {
	old, known := l.told[key]
	if !known {
		return nil
	}
	delete(l.told, key)
	return l.send(adminv1.EventType_EVENT_TYPE_DELETED, old)
}

// hideUnless hides every item that stays does not name.
func (l *list[T]) hideUnless(stays map[string]bool) error {
	for key := range l.told {
		if !stays[key] {
			if err := l.hide(key); err != nil {
				return err
			}
		}
	}
	return nil
}

// errComplete ends the list of a caller that does not watch.
var errComplete = errors.New("the list is complete")

// synced ends the state at the start.
func (l *list[T]) synced() error {
	if l.told == nil {
		return errComplete
	}
	var none T
	return l.send(adminv1.EventType_EVENT_TYPE_SYNCED, none)
}

// end is what a list's stream ends with. That a caller has all it wanted, or
// goes away, is no error.
func end(ctx context.Context, err error) error {
	if errors.Is(err, errComplete) || ctx.Err() != nil {
		return nil
	}
	return err
}

// follow calls f with all that m has, then with each change, until ctx ends or f
// fails. The first call comes at once, with initial set.
func follow[V any](ctx context.Context, m *watch.Map[string, V], f func(initial bool, changes []watch.Change[string, V]) error) error {
	r := m.Reader()
	defer r.Close()
	for initial := true; ; initial = false {
		changes, err := r.Next(ctx)
		if err != nil {
			return err
		}
		if err := f(initial, changes); err != nil {
			return err
		}
	}
}

// has reports whether labels include all that are wanted.
func has(labels, wanted map[string]string) bool {
	for key, value := range wanted {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}
