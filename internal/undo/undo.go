// SPDX-License-Identifier: Apache-2.0

// Package undo takes back the steps of an operation that failed half-way.
//
// Each step that succeeded adds what takes it back. Either the operation as a
// whole succeeds and is kept, or everything added runs in reverse order:
//
//	func build(ctx context.Context) (err error) {
//		var steps undo.Stack
//		defer func() { err = errors.Join(err, steps.Run(ctx)) }()
//
//		if err := create(ctx); err != nil {
//			return err
//		}
//		steps.Add(remove)
//		…
//		steps.Keep()
//		return nil
//	}
//
// What an object has opened is such a stack as well, which its Close runs.
package undo

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Timeout bounds one Run. Undoing begins when the operation has failed, often
// because its deadline has passed, so it gets time of its own: long enough for
// a dozen link deletions (20 ms each) and one call to a peer.
const Timeout = 5 * time.Second

// Stack is what has been done so far. The zero value is empty and ready. A
// Stack belongs to one operation and one goroutine.
type Stack struct {
	steps []func(context.Context) error
}

// Add pushes what takes back the step that has just succeeded.
func (s *Stack) Add(step func(context.Context) error) { s.steps = append(s.steps, step) }

// Call is Add for what cannot fail, or whose failure nobody minds.
func (s *Stack) Call(step func()) {
	s.Add(func(context.Context) error { step(); return nil })
}

// Go runs f in a goroutine; what takes it back cancels its context and waits.
func (s *Stack) Go(f func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	s.Add(func(context.Context) error {
		cancel()
		<-done
		return nil
	})
}

// Keep empties the stack without running it: the operation has succeeded.
func (s *Stack) Keep() { s.steps = nil }

// Run takes back every step, the last one first, and empties the stack, so
// that a second Run does nothing. All steps run even if some fail; their
// errors are joined. The steps see ctx's values but neither its cancellation
// nor its deadline, only [Timeout].
func (s *Stack) Run(ctx context.Context) error {
	if len(s.steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
	defer cancel()

	var errs []error
	for _, step := range slices.Backward(s.steps) {
		errs = append(errs, step(ctx))
	}
	s.steps = nil
	return errors.Join(errs...)
}
