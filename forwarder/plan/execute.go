// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"errors"
	"fmt"
	"slices"
)

// StepError says which step failed.
type StepError struct {
	Step Step
	Err  error   // of that step
	Undo []error // of taking back the steps before it; usually none
}

// Error names the command and its error.
func (e *StepError) Error() string { return fmt.Sprintf("%s: %v", e.Step, e.Err) }

// Unwrap returns the step's error.
func (e *StepError) Unwrap() error { return e.Err }

// Execute calls do for each step. When one fails it takes the steps before it
// back (see [Undo]) and returns a *StepError.
func Execute(steps []Step, do func(Step) error) error {
	for i, s := range steps {
		if err := do(s); err != nil {
			return &StepError{Step: s, Err: err, Undo: Undo(steps[:i], do)}
		}
	}
	return nil
}

// Undo takes executed steps back in reverse order, as far as they have an
// [Inverse], and returns what went wrong with that. A deleted link ends the way
// back: it cannot be restored, nor what belonged to it.
func Undo(steps []Step, do func(Step) error) (errs []error) {
	for _, s := range slices.Backward(steps) {
		if _, deleted := s.(DelLink); deleted {
			break
		}
		if inverse := Inverse(s); inverse != nil {
			if err := do(inverse); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", inverse, err))
			}
		}
	}
	return errs
}

// ErrVNITaken is wrapped by the error of an apply when a VXLAN device with the
// wire's VNI and port is in the underlay already: the wire can be made with
// another VNI.
var ErrVNITaken = errors.New("VNI is in use on this node")
