// SPDX-License-Identifier: Apache-2.0

package plan

import "fmt"

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
// back in reverse order, as far as they have an [Inverse], and returns a
// *StepError. A deleted link ends the way back: it cannot be restored, nor what
// belonged to it.
func Execute(steps []Step, do func(Step) error) error {
	for i, s := range steps {
		err := do(s)
		if err == nil {
			continue
		}
		failure := &StepError{Step: s, Err: err}
		for j := i - 1; j >= 0; j-- {
			if _, deleted := steps[j].(DelLink); deleted {
				break
			}
			inverse := Inverse(steps[j])
			if inverse == nil {
				continue
			}
			if err := do(inverse); err != nil {
				failure.Undo = append(failure.Undo, fmt.Errorf("%s: %w", inverse, err))
			}
		}
		return failure
	}
	return nil
}
