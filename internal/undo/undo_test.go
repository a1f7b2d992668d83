// SPDX-License-Identifier: Apache-2.0

package undo_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/openvwire/nsm/internal/undo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRunReversesAndJoins(t *testing.T) {
	var steps undo.Stack
	var ran []string
	failed := errors.New("link is busy")
	add := func(name string, err error) {
		steps.Add(func(context.Context) error { ran = append(ran, name); return err })
	}
	add("first", nil)
	add("second", failed)
	add("third", nil)

	if err := steps.Run(t.Context()); !errors.Is(err, failed) {
		t.Errorf("Run() = %v, want %v", err, failed)
	}
	if want := []string{"third", "second", "first"}; !slices.Equal(ran, want) {
		t.Errorf("ran %v, want %v", ran, want)
	}
	if err := steps.Run(t.Context()); err != nil || len(ran) != 3 {
		t.Errorf("second Run() = %v after %v, want nothing to run", err, ran)
	}
}

func TestKeep(t *testing.T) {
	var steps undo.Stack
	steps.Add(func(context.Context) error { t.Error("ran although kept"); return nil })
	steps.Keep()
	if err := steps.Run(t.Context()); err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
}

// The usual reason to undo is a context that has ended.
func TestRunOutlivesTheOperation(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	cancel()

	var steps undo.Stack
	steps.Add(func(ctx context.Context) error {
		if ctx.Value(key{}) != "value" {
			t.Error("values of the context are lost")
		}
		if _, bounded := ctx.Deadline(); !bounded {
			t.Error("undoing has no time limit")
		}
		return ctx.Err()
	})
	if err := steps.Run(ctx); err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
}

func TestGoIsTakenBack(t *testing.T) {
	var steps undo.Stack
	running := true
	steps.Go(func(ctx context.Context) {
		<-ctx.Done()
		running = false
	})
	if err := steps.Run(t.Context()); err != nil || running {
		t.Errorf("Run() = %v, still running: %v", err, running)
	}
}
