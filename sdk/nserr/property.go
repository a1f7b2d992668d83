// SPDX-License-Identifier: Apache-2.0

package nserr

import "slices"

// property is what follows from a reason for those who may ask again, or ask
// somebody else. The table of reasons says which has which.
type property int

const (
	passes property = iota
	unanswered
	anyForwarder
	anyEndpoint
)

func (r *Reason) has(p property) bool { return slices.Contains(r.implies, p) }

// Passes reports whether the same Request may succeed later.
func (r *Reason) Passes() bool { return r.has(passes) }

// Unanswered reports whether somebody could not be asked, or has not answered, as
// opposed to saying no. What was asked for may have been done.
func (r *Reason) Unanswered() bool { return r.has(unanswered) }

// AnyForwarder reports whether another forwarder of the node would fail for the same
// reason: it is the request that is wrong, or who sends it, or what lies behind.
func (r *Reason) AnyForwarder() bool { return r.has(anyForwarder) }

// AnyEndpoint reports whether another endpoint of the service would fail for the same
// reason: it is the client's side that is wrong.
func (r *Reason) AnyEndpoint() bool { return r.has(anyEndpoint) }
