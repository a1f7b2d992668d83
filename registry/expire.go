// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"container/heap"
	"context"
	"errors"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/internal/backoff"
)

// expireRetry spaces attempts when the store does not answer. Nobody is misled
// meanwhile: Find does not show what has expired.
var expireRetry = backoff.Policy{Min: 100 * time.Millisecond, Max: 5 * time.Second}

// errRenewed keeps an endpoint that was renewed while its end was near.
var errRenewed = errors.New("endpoint has been renewed")

// expireEndpoints removes endpoints when they expire, until ctx ends: one
// goroutine that follows the store like any watcher and sleeps until the
// earliest deadline.
func (s *Server) expireEndpoints(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		w, err := s.endpoints.Watch(ctx, nil)
		if err == nil {
			var worked bool
			worked, err = s.expireWatched(ctx, w)
			w.Close()
			if worked {
				attempt = 0
			}
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("expiry of endpoints is interrupted", "error", err)
		if expireRetry.Wait(ctx, attempt) != nil {
			return
		}
	}
}

// expireWatched works until w or the store fails. worked tells whether it did
// anything before.
func (s *Server) expireWatched(ctx context.Context, w Watcher[*api.NetworkServiceEndpoint]) (worked bool, err error) {
	ends := newDeadlines()
	for {
		events, err := nextBefore(ctx, w, ends)
		if err != nil {
			return worked, err
		}
		for _, e := range events {
			if e.Deleted {
				ends.remove(e.Object.GetName())
			} else {
				ends.set(e.Object.GetName(), e.Expires)
			}
		}
		for _, name := range ends.due(time.Now()) {
			if err := s.expire(ctx, name); err != nil {
				return worked, err
			}
		}
		worked = true
	}
}

// nextBefore waits for events, but not beyond the earliest deadline.
func nextBefore(ctx context.Context, w Watcher[*api.NetworkServiceEndpoint], ends *deadlines) ([]Event[*api.NetworkServiceEndpoint], error) {
	wait := ctx
	if at, ok := ends.next(); ok {
		var cancel context.CancelFunc
		wait, cancel = context.WithDeadline(ctx, at)
		defer cancel()
	}
	events, err := w.Next(wait)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return nil, nil
	}
	return events, err
}

// expire removes an endpoint unless it has been renewed.
func (s *Server) expire(ctx context.Context, name string) error {
	_, err := s.endpoints.Update(ctx, name, func(old *api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
		if old != nil && !Expired(old, time.Now()) {
			return nil, errRenewed
		}
		return nil, nil
	})
	if errors.Is(err, errRenewed) {
		return nil
	}
	if err == nil {
		s.log.Info("endpoint expired", "endpoint", name)
	}
	return err
}

// deadlines knows when names end. It is pure: the zero time is never, and the
// caller says what time it is.
type deadlines struct {
	byName map[string]*deadline
	queue  deadlineQueue // the values of byName
}

type deadline struct {
	name  string
	at    time.Time
	index int // in the queue
}

func newDeadlines() *deadlines { return &deadlines{byName: make(map[string]*deadline)} }

// set says when name ends.
func (d *deadlines) set(name string, at time.Time) {
	known := d.byName[name]
	switch {
	case at.IsZero():
		d.remove(name)
	case known != nil:
		known.at = at
		heap.Fix(&d.queue, known.index)
	default:
		known = &deadline{name: name, at: at}
		d.byName[name] = known
		heap.Push(&d.queue, known)
	}
}

func (d *deadlines) remove(name string) {
	if known := d.byName[name]; known != nil {
		delete(d.byName, name)
		heap.Remove(&d.queue, known.index)
	}
}

// next returns the earliest end.
func (d *deadlines) next() (time.Time, bool) {
	if len(d.queue) == 0 {
		return time.Time{}, false
	}
	return d.queue[0].at, true
}

// due removes and returns the names that have ended, earliest first.
func (d *deadlines) due(now time.Time) []string {
	var names []string
	for len(d.queue) > 0 && !d.queue[0].at.After(now) {
		name := d.queue[0].name
		d.remove(name)
		names = append(names, name)
	}
	return names
}

// deadlineQueue implements heap.Interface, earliest first.
type deadlineQueue []*deadline

func (q deadlineQueue) Len() int           { return len(q) }
func (q deadlineQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q deadlineQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *deadlineQueue) Push(x any) {
	d := x.(*deadline)
	d.index = len(*q)
	*q = append(*q, d)
}

func (q *deadlineQueue) Pop() any {
	last := len(*q) - 1
	d := (*q)[last]
	(*q)[last] = nil // for the garbage collector
	*q = (*q)[:last]
	return d
}
