// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"sync"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// rivals tells two that run under one name from one that has moved. Who registers
// from another address has moved, as far as anybody knows. When the first address
// renews the registration after that, both run: it is the first one's, and the second is
// refused for as long as the first renews.
type rivals struct {
	mu     sync.Mutex
	byName map[string]rival // guarded by mu
}

type rival struct {
	first, second string    // URLs
	both          bool      // run
	until         time.Time // when it is forgotten
}

// meet decides about a registration that would put the URL comes in the place of the
// URL had, of an entry that lives. found is true when it shows that two run.
func (r *rivals) meet(name, had, comes string, now time.Time, life time.Duration) (found bool, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.byName[name]
	ok = ok && known.until.After(now)
	until := now.Add(life)
	switch {
	case had == comes:
		if ok && known.both && known.first == comes {
			known.until = until
			r.byName[name] = known
		}
		return false, nil
	case ok && known.first == comes && known.second == had:
		found = !known.both
		r.byName[name] = rival{first: comes, second: had, both: true, until: until}
		return found, nil
	case ok && known.both && known.first == had && known.second == comes:
		return false, nserr.NameInUse.Errorf("%q runs at %s, and is registered from %s too", name, had, comes).
			WithFix("give one of the two another name: --node at 'nsm up', --name at 'nsm serve' and 'nsm forwarder'")
	}
	if r.byName == nil {
		r.byName = make(map[string]rival)
	}
	for other, x := range r.byName {
		if !x.until.After(now) {
			delete(r.byName, other)
		}
	}
	r.byName[name] = rival{first: had, second: comes, until: until}
	return false, nil
}
