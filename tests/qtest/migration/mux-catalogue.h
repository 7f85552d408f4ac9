/*
 * QTest helpers for migration over a multiplexed connection: the catalogue of
 * faults
 *
 * Reads tests/data/migration/mux-faults.ini, whose head describes the keys.
 * Knows how it is written, not what it means.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MUX_CATALOGUE_H
#define MUX_CATALOGUE_H

/*
 * Read the catalogue; call it before anything else.
 *
 * Returns: whether it is there
 */
bool mux_catalogue_load(void);

/*
 * Call @func for each fault and each of its phases.  The strings belong to the
 * catalogue.
 */
void mux_catalogue_foreach(void (*func)(const char *fault, const char *phase));

/* Fails the test if the catalogue has a key that means nothing. */
void mux_catalogue_check(void);

/*
 * What the catalogue says about a phase.
 *
 * Returns: a string that belongs to the catalogue, which is empty for a key
 * that is not there; or whether the key is there and true
 */
const char *mux_phase_get(const char *phase, const char *key);
bool mux_phase_is(const char *phase, const char *key);

/*
 * The same about a fault in a phase; NULL for a key that is not there.
 */
const char *mux_fault_get(const char *fault, const char *phase,
                          const char *key);
bool mux_fault_is(const char *fault, const char *phase, const char *key);

/* Returns: the elements of a list, to be freed; none for an absent key */
GStrv mux_fault_list(const char *fault, const char *phase, const char *key);

/*
 * What the error of a side has in it: one of these texts.
 *
 * @side: "source" or "destination"
 *
 * Returns: a list to be freed; NULL if the catalogue does not say
 */
GStrv mux_fault_texts(const char *fault, const char *phase, const char *side);

#endif
