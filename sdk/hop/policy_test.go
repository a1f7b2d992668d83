// SPDX-License-Identifier: Apache-2.0

package hop

import "testing"

func TestStrictObservers(t *testing.T) {
	const me, other = "spiffe://a/me", "spiffe://a/other"
	for _, tt := range []struct {
		name      string
		observers []string
		id        string
		path      []string
		want      bool
	}{
		{"on the path", nil, me, []string{other, me}, true},
		{"not on the path", nil, me, []string{other}, false},
		{"named", []string{me}, me, []string{other}, true},
		{"below a named one", []string{"spiffe://a/*"}, me, nil, true},
		{"a named one itself is not below it", []string{"spiffe://a/me/*"}, me, nil, false},
		{"whose name begins alike", []string{"spiffe://a/m*", "spiffe://a/m"}, me, nil, false},
		{"unknown, on a path of unknowns", nil, "", []string{""}, false},
		{"unknown, with an empty name", []string{""}, "", []string{other}, false},
		{"unknown, with everything", []string{"*", "/*"}, "", []string{other}, false},
		{"known, with an empty name", []string{""}, me, []string{other}, false},
	} {
		m, v := NewMonitor(Strict{Observers: tt.observers}), &View{identities: tt.path}
		if got := m.maySee(tt.id, v); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
